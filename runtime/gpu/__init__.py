"""The NVIDIA driver and GPU memory, without PyTorch."""
