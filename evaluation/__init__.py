"""Evaluation protocols: files on disk -> embeddings -> the numbers of ``evaluate_utils.py``, one command for all."""
