"""TensorRT and TensorRT for RTX: build, check, keep and run engine plans."""
