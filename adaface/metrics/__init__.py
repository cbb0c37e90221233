"""Numbers from similarities: accuracy, TAR, intervals, comparisons."""
