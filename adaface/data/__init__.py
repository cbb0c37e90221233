"""Training images and verification pairs, decoded, ordered, batched."""
