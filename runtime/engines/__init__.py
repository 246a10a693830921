"""The engine protocol, and the engines of ONNX Runtime and OpenVINO."""
