"""Backbones: images to embeddings and norms."""
