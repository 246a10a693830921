#!/usr/bin/env python3
"""Sets built from data at hand, named as what they are; each is one NPZ file that `dim distill --data` takes.

    python -m lab.build_sets svhn --folder svhn-10000/svhn --out svhn-8000.npz       # 8,000 and 2,000 test images
    python -m lab.build_sets pasted --data-dir data --out pasted64.npz               # 64 pixels, colour, ten classes

`svhn` takes class folders of test images of SVHN, whose training images are not at hand: 8,000 to train on, the rest to
test on. First it writes them as a MATLAB file of the official form and compares what the reader of the official files
makes of it. Non-commercial use only.

`pasted` pastes items of FashionMNIST, enlarged to 36 to 56 pixels, tinted, somewhere on a CIFAR-10 image enlarged to 64
pixels. The class is the item's. Training images are made of training images, test images of test images. It is no
dataset that anybody collected; it shows what 64 pixels cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dim.data.image_set import ImageSet
from dim.data.load import load_data
from dim.data.readers.known import read_svhn_arrays

TRAIN_SVHN = 8000
SIDE_PX, ITEM_PX = 64, (36, 56)
TINT = (0.55, 1.0)
"""Least and greatest factor of a colour channel of an item."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def build_svhn(folder: Path, out: Path, seed: int = 0) -> None:
    """Write the images of class folders, part to train on and part to test on, and check the official files' reader."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    labels = np.array([int(path.parent.name) for path in files], np.int64)
    check_svhn_reader(images, labels)
    order = np.random.default_rng(seed).permutation(len(images))
    train, test = order[:TRAIN_SVHN], order[TRAIN_SVHN:]
    write_set(out, (images[train], labels[train]), (images[test], labels[test]), [str(digit) for digit in range(10)])


def check_svhn_reader(images: Images, labels: Labels) -> None:
    """Write images as the official MATLAB files hold them, and read them back.

    Raises:
        AssertionError: other images or labels come out.
    """
    from scipy.io import savemat

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_32x32.mat"
        values = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
        savemat(path, values, do_compression=True)
        found_images, found_labels = read_svhn_arrays(path)
    assert np.array_equal(found_images, images) and np.array_equal(found_labels, labels)
    print(f"The reader of SVHN's MATLAB files gives {len(images):,} images and labels back.", file=sys.stderr)


def build_pasted(items: ImageSet, backgrounds: ImageSet, sizes: tuple[int, int], out: Path, seed: int = 0) -> None:
    """Write `sizes` training and test images of pasted items."""
    rng = np.random.default_rng(seed)
    parts = [
        paste_items(rng, size, *pair, pictures)
        for size, pair, pictures in (
            (sizes[0], (items.train_images, items.train_labels), backgrounds.train_images),
            (sizes[1], (items.test_images, items.test_labels), backgrounds.test_images),
        )
    ]
    write_set(out, parts[0], parts[1], list(items.classes))


def paste_items(
    rng: np.random.Generator, count: int, items: Images, labels: Labels, backgrounds: Images
) -> tuple[Images, Labels]:
    """Paste items onto backgrounds, the classes in turn.

    Args:
        rng: of every choice.
        count: images to make.
        items: uint8 [N, 28, 28, 1], bright on black.
        labels: int64 [N].
        backgrounds: uint8 [M, H, W, 3].

    Returns:
        uint8 [count, 64, 64, 3] and int64 [count].
    """
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    pasted = np.empty((count, SIDE_PX, SIDE_PX, 3), np.uint8)
    classes = np.arange(count, dtype=np.int64) % len(by_class)
    for number, label in enumerate(classes):
        rows = by_class[label]
        item = Image.fromarray(items[rows[number // len(by_class) % len(rows)], :, :, 0])
        side = int(rng.integers(*ITEM_PX, endpoint=True))
        bright = np.asarray(item.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
        behind = Image.fromarray(backgrounds[rng.integers(len(backgrounds))])
        picture = np.asarray(behind.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)).astype(np.float32) / 255
        top, left = rng.integers(0, SIDE_PX - side, 2, endpoint=True)
        window = picture[top : top + side, left : left + side]
        # Black is what lies around an item; a steep border keeps the dark parts inside it.
        cover = np.clip(bright * 6, 0, 1)[:, :, None]
        colour = (0.25 + 0.75 * bright[:, :, None]) * rng.uniform(*TINT, 3).astype(np.float32)
        window[:] = window * (1 - cover) + colour * cover
        pasted[number] = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return pasted, classes


def write_set(out: Path, train: tuple[Images, Labels], test: tuple[Images, Labels], classes: list[str]) -> None:
    """Write both splits as one NPZ file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out, images=train[0], labels=train[1], test_images=test[0], test_labels=test[1], classes=np.array(classes)
    )
    print(f"{out}: {len(train[0]):,} training and {len(test[0]):,} test images {train[0].shape[1:]}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Build one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = parser.add_subparsers(dest="set", required=True)
    svhn = sets.add_parser("svhn")
    svhn.add_argument("--folder", type=Path, required=True, help="class folders 0 to 9 of test images")
    pasted = sets.add_parser("pasted")
    pasted.add_argument("--data-dir", help="of FashionMNIST and CIFAR-10, as for dim distill")
    pasted.add_argument("--sizes", type=int, nargs=2, default=(20_000, 4_000), help="training and test images")
    for each in (svhn, pasted):
        each.add_argument("--out", type=Path, required=True, help="an .npz file")
    options = parser.parse_args(arguments)
    if options.set == "svhn":
        build_svhn(options.folder, options.out)
    else:
        items, backgrounds = (load_data(name, data_dir=options.data_dir) for name in ("fashion-mnist", "cifar10"))
        build_pasted(items, backgrounds, tuple(options.sizes), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
