"""The training module and everything around its steps."""
