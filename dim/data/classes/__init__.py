"""Which image is of which class and split: from folders, tables and labels."""
