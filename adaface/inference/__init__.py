"""Inference with trained models: embed, compare and search faces."""
