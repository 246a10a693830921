"""From a PyTorch generator to ONNX graphs in every precision."""
