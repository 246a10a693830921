"""How training runs: threads, devices, data on the device, compiled steps, CUDA graphs, several processes."""
