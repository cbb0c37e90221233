"""Metrics computed from similarities: accuracy, TAR at FAR, confidence intervals, model comparisons."""
