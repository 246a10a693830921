"""Labelled images in: every layout that is read, and the checks on it."""
