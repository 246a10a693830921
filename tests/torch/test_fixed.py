"""One set of a bundle under PyTorch's loaders."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from loaders import Invert, count_pictures
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle
from torch.utils.data import DataLoader

from dim.runtime.bundle import open_bundle
from dim.runtime.errors import BadValueError, BundleError
from dim.torch import FixedDataset

pytestmark = [pytest.mark.filterwarnings("ignore:This process")]


def test_it_holds_what_the_bundle_draws(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle) as bundle:
        for size in ({"ipc": 5}, {"total": 12}, {"per_class": {"one": 4, "two": 1}}, {"ipc": 3, "classes": ["two"]}):
            images, labels = bundle.arrays(**size, seed=2, start=1)  # type: ignore[arg-type]
            data = FixedDataset(bundle, **size, seed=2, start=1, normalize=False)  # type: ignore[arg-type]
            assert len(data) == len(images) and data.classes == bundle.classes
            assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), images)
            assert data.labels.tolist() == labels.tolist() and data.logits is None
            image, label = data[-1]
            assert torch.equal(image, data.images[-1]) and label == labels[-1]
        bundle.sample([0])  # an open bundle stays open
    normalised = FixedDataset(tiny_bundle, ipc=5)
    image, _ = normalised[3]
    assert torch.equal(image, (normalised.images[3].float() / 255 - 0.5) / 0.25)
    assert torch.equal(normalised.normalize(normalised.images)[3], image)
    assert repr(normalised) == "<FixedDataset: 15 images of 3 classes>"


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_shuffle_it_and_show_the_same_images_again(tiny_bundle: Path, workers: int) -> None:
    data = FixedDataset(tiny_bundle, ipc=8, normalize=False)
    loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=workers)
    whole = count_pictures([(data.images, data.labels)])
    assert count_pictures(loader) == count_pictures(loader) == whole and len(loader) == 5


def test_a_transform_is_run_at_every_access(tiny_bundle: Path) -> None:
    invert = Invert()
    data = FixedDataset(tiny_bundle, ipc=2, transform=invert, normalize=False)
    assert torch.equal(data[1][0], 255 - data.images[1]) and torch.equal(data[1][0], 255 - data.images[1])
    assert invert.shapes == [(1, 8, 8)] * 2


def test_soft_labels(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "b.dim", extra_files={"teacher.onnx": teacher_graph()})
    data = FixedDataset(path, ipc=4, soft_labels=True)
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 1.0, (64, 3)).astype(np.float32))
    assert data.logits is not None and torch.equal(data[2][2], data.logits[2])
    assert torch.allclose(data.logits, data.images.flatten(1).float() @ weight, rtol=2e-3, atol=1)
    [(images, labels, logits)] = DataLoader(data, batch_size=12)
    assert (images.shape, labels.shape, logits.shape) == ((12, 1, 8, 8), (12,), (12, 3))
    with pytest.raises(BundleError, match=r"has no teacher.onnx to make soft labels; leave soft_labels out\."):
        FixedDataset("mnist", ipc=1, soft_labels=True)


def test_a_pickled_set_needs_no_bundle(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "b.dim")
    there = pickle.dumps(FixedDataset(path, ipc=2))
    (path / "manifest.json").unlink()
    assert len(pickle.loads(there)) == 6


def test_indices_and_sizes_that_cannot_be(tiny_bundle: Path) -> None:
    data = FixedDataset(tiny_bundle, ipc=2)
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"index {index} is out of range: there are 6 images"):
            data[index]
    with pytest.raises(BadValueError):
        FixedDataset(tiny_bundle)
    with pytest.raises(BadValueError):
        FixedDataset(tiny_bundle, ipc=2, total=3)
