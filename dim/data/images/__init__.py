"""Converts pixels of any kind to uint8 images of one size, and caches large decoded sets."""
