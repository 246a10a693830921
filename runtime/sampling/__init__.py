"""The sampling contract: Philox, latents, counts per class, the order of a stream."""
