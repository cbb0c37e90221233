"""The audit of a training set: what is wrong with it, found before it costs a week of training."""
