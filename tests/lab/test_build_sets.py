"""lab/build_sets.py: sets of test images of SVHN, and of items pasted onto pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim.data.image_set import ImageSet
from dim.data.load import load_data
from lab import build_sets


def test_class_folders_of_svhn_become_a_set_and_the_reader_of_the_official_files_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(120):
        folder = tmp_path / "svhn" / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number:05d}.png")
    monkeypatch.setattr(build_sets, "TRAIN_SVHN", 90)
    out = tmp_path / "some.npz"
    assert build_sets.main(["svhn", "--folder", str(tmp_path / "svhn"), "--out", str(out)]) == 0
    data = load_data(str(out))
    assert data.name == "some" and data.classes == tuple("0123456789")
    assert (len(data.train_images), len(data.test_images), data.height) == (90, 30, 32)
    written = {
        (path.parent.name, np.asarray(Image.open(path)).tobytes()) for path in (tmp_path / "svhn").glob("*/*.png")
    }
    found = {
        (str(label), image.tobytes())
        for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
        for image, label in zip(images, labels, strict=True)
    }
    assert found == written


def test_items_are_pasted_where_they_fit_and_their_class_stays(tmp_path: Path) -> None:
    items = np.zeros((8, 28, 28, 1), np.uint8)
    items[:4, 4:24, 4:24] = 255  # class 0: a square that nothing shines through
    images, labels = build_sets.paste_items(
        np.random.default_rng(1), 10, items, np.arange(8) // 4, np.zeros((2, 32, 32, 3), np.uint8)
    )
    assert images.shape == (10, 64, 64, 3) and labels.tolist() == [0, 1] * 5
    lit = (images.max(axis=3) > 100).sum(axis=(1, 2))
    assert (lit[1::2] == 0).all()
    assert (lit[::2] >= (36 * 18 // 28) ** 2).all() and (lit[::2] <= (56 * 22 // 28) ** 2).all()
    assert len({image.tobytes() for image in images[::2]}) == 5


def test_both_splits_are_written_apart(tmp_path: Path) -> None:
    def make(name: str, channels: int, px: int) -> ImageSet:
        rng = np.random.default_rng(px)
        images, labels = rng.integers(0, 256, (12, px, px, channels), np.uint8), np.arange(12) % 3
        return ImageSet(
            name=name,
            classes=("a", "b", "c"),
            train_images=images[:9],
            train_labels=labels[:9],
            test_images=images[9:],
            test_labels=labels[9:],
            licence="none",
            note="",
        )

    out = tmp_path / "pasted.npz"
    build_sets.build_pasted(make("x", 1, 28), make("y", 3, 32), (6, 3), out)
    data = load_data(str(out))
    assert data.classes == ("a", "b", "c") and data.height == 64
    assert data.train_labels.tolist() == [0, 1, 2] * 2 and len(data.test_images) == 3
