"""Trained models as functions: embed, compare, search."""
