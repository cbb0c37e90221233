"""Evaluation protocols: from data on disk to metrics and reports."""
