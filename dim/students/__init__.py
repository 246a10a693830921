"""Training a classifier on generated or real images."""
