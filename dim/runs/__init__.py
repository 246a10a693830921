"""A run directory: checkpoints, curves, and taking over stage 1 of another run."""
