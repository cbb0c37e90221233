"""Evaluation protocols: from files on disk to the numbers of ``verification_metrics``, one command for all."""
