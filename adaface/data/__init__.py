"""Training images and verification pairs, read, decoded and batched."""
