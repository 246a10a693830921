"""The formats of a set on disk: ImageFolder, NPZ, NPY, Parquet, WebDataset, and the plan they follow."""
