"""Conversion of record files to folders and back."""
