"""A training set on disk gives the batches that the same set in memory gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dim.execution.device_data import DeviceData, step_generator
from dim.execution.large_images import MappedRows, open_images, select_images

CPU = torch.device("cpu")


def test_batches_from_disk_are_those_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 60)
    np.save(tmp_path / "images.npy", images)
    in_memory = DeviceData(images, labels, 3, CPU)
    mapped = open_images(tmp_path / "images.npy", np.arange(60))
    assert isinstance(mapped, np.memmap)
    monkeypatch.setattr("dim.execution.large_images.free_memory_bytes", lambda: 0)
    large = open_images(tmp_path / "images.npy", np.arange(60))
    assert type(large) is MappedRows and type(select_images(large, labels == 1)) is MappedRows
    on_disk = DeviceData(large, labels, 3, CPU)
    assert on_disk.images._on_device is None and on_disk.images._on_disk is not None
    for data in (in_memory, on_disk):
        batch = data.draw_images(torch.tensor([0, 1, 2, 2]), step_generator(CPU, 0, "x"))
        assert batch.is_contiguous(memory_format=torch.channels_last) and batch.shape == (4, 3, 8, 8)
    draws = [
        (
            data.draw_images(torch.arange(64) % 3, step_generator(CPU, 1, "x")),
            data.draw_class_images(1, 5, step_generator(CPU, 2, "x")),
        )
        for data in (in_memory, on_disk)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_an_array_that_is_asked_for_without_a_copy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 1), np.uint8))
    rows = MappedRows(tmp_path / "images.npy", np.array([3, 1]))
    assert np.asarray(rows).shape == (2, 8, 8, 1) and len(rows) == 2 and rows.nbytes == 128
    with pytest.raises(ValueError, match=r"^Images on disk are read into a new array\.$"):
        np.array(rows, copy=False)
