"""Predicts kernel times on a GPU from counted instructions: see benchmarks/gpu_model.py."""
