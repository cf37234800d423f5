"""Outputs for people and other programs: result files, pictures, tables and progress."""
