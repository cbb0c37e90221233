"""Files of trained models, run folders, published models."""
