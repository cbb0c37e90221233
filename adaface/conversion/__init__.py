"""Records to folders and back."""
