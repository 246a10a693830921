"""Datasets of a bundle for PyTorch's data loaders: new images at every pass, or one fixed set.

    from torch.utils.data import DataLoader

    loader = DataLoader(dim.torch.StreamDataset("mnist", ipc=10), batch_size=64)
    for images, labels in loader:                                     # float32 [64, C, H, W], int64 [64]
        ...

Images are normalised as the bundle's source was. It needs torch and an engine, not the extra `train`.
"""

from dim.torch.fixed import FixedDataset as FixedDataset
from dim.torch.stream import StreamDataset as StreamDataset

__all__ = ["FixedDataset", "StreamDataset"]
