"""The generator in PyTorch, as an engine and for comparison in `dim bench`."""
