"""The audit of a training set: find problems in the data before training."""
