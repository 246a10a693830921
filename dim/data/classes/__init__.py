"""Finds the class and the split of every image, from folders, tables and labels."""
