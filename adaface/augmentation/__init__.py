"""Random changes to training images: the paper's, and more."""
