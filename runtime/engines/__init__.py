"""What an engine is, and the engines over ONNX Runtime."""
