"""Training module, trainer and callbacks."""
