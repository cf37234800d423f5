"""The training loop, its parts and what it leaves on disk."""
