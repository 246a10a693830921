"""A run directory: checkpoints, curves, what a run may take over from another."""
