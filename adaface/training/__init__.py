"""The training module, its trainer and its callbacks."""
