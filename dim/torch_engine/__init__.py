"""The generator in PyTorch, as a rival for `dim bench`."""
