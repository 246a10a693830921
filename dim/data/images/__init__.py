"""Pixels of any kind to uint8 images of one size, decoded once and kept."""
