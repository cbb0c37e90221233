"""Checkpoint files, run folders, published models."""
