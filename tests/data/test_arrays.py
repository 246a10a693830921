"""Arrays by the names and in the forms that people use, in files and in memory."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import npz, random_images, without_cautions
from PIL import Image

from dim.data.images.arrays import read_pixels
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import BadValueError, DataError

IMAGES = random_images(40, 8, 3)
LABELS = np.arange(40) % 4


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels"),
        ("x_train", "y_train"),
        ("X_train", "Y_train"),
        ("train_images", "train_labels"),
        ("train_x", "train_y"),
        ("data", "target"),
        ("data", "labels"),
        ("X", "y"),
        ("arr_0", "arr_1"),
    ],
)
def test_images_and_labels_by_the_names_that_people_use(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "x.npz").write_bytes(npz(**dict(zip(names, (IMAGES, LABELS), strict=True))))
    assert load_data(str(tmp_path / "x.npz")).fingerprint() == load_data((IMAGES, LABELS)).fingerprint()


@pytest.mark.parametrize("names", ["x_test y_test", "test_images test_labels", "val_images val_labels", "X_val y_val"])
def test_a_test_split_by_the_names_that_people_use(tmp_path: Path, names: str) -> None:
    x, y = names.split()
    (tmp_path / "x.npz").write_bytes(npz(x_train=IMAGES, y_train=LABELS, **{x: IMAGES[:8], y: LABELS[:8]}))
    data = load_data(str(tmp_path / "x.npz"))
    assert np.array_equal(data.train_images, IMAGES) and np.array_equal(data.test_images, IMAGES[:8])


def test_arrays_by_the_names_that_the_user_gives(tmp_path: Path) -> None:
    other = LABELS[::-1].copy()
    arrays = {"pixels": IMAGES, "fine": LABELS, "coarse": other, "test_pixels": IMAGES[:8], "test_coarse": other[:8]}
    path = tmp_path / "x.npz"
    path.write_bytes(npz(**arrays))
    data = load_data(path, DataOptions(image_column="pixels", label_column="coarse"))
    assert np.array_equal(data.train_labels, other) and np.array_equal(data.train_images, IMAGES)
    assert np.array_equal(data.test_labels, other[:8]) and np.array_equal(data.test_images, IMAGES[:8])
    found = "no column 'x' (found: pixels, fine, coarse, test_pixels, test_coarse); say another --label-column"
    for label, split, message in (("x", None, found), ("fine", "train", "--split and names of arrays do not go")):
        with pytest.raises(DataError, match=f": {re.escape(message)}"):
            load_data(path, DataOptions(image_column="pixels", label_column=label, split=split))
    path.write_bytes(npz(images=IMAGES, labels=LABELS, coarse=other))
    by_one = load_data(path, DataOptions(label_column="coarse"))
    assert by_one.fingerprint() == load_data((IMAGES, other)).fingerprint()


@pytest.mark.parametrize(
    ("array", "expected", "remark"),
    [
        (IMAGES, IMAGES, ""),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES, "images were stored channel by channel ([N, C, H, W])"),
        (IMAGES[..., 0], IMAGES[..., :1], ""),
        (
            IMAGES[..., 0].reshape(40, 64),
            IMAGES[..., :1],
            "rows of 64 values were taken for grey images of 8 x 8 pixels",
        ),
        (IMAGES / np.float32(255), IMAGES, "floats from 0 to 1 became 0 to 255"),
        (IMAGES / 255 * 1.0005 - 0.0002, IMAGES, "floats from 0 to 1 became 0 to 255"),
        (IMAGES / 127.5 * 1.0005 - 1.0003, IMAGES, "floats from -1 to 1 became 0 to 255"),
        ((IMAGES / 127.5 - 1), IMAGES, "floats from -1 to 1 became 0 to 255"),
        (IMAGES.astype(np.float32), IMAGES, "float32 values from 0 to 255 were taken as they are"),
        (IMAGES.astype(np.int64), IMAGES, "int64 values from 0 to 255 were taken as they are"),
        (IMAGES > 99, np.where(IMAGES > 99, 255, 0), "pixels were true or false: 255 and 0"),
        (IMAGES.astype(np.uint16) << 4, IMAGES, "values up to 4080 were read as using 12 bits"),
    ],
)
def test_pixels_in_the_forms_that_people_use(array: Any, expected: Any, remark: str) -> None:
    (images,), remarks = read_pixels([array], "P")
    assert images.dtype == np.uint8 and np.array_equal(images, expected)
    assert remarks == ((remark,) if remark else ())


def test_both_splits_are_scaled_alike() -> None:
    (train, test), _ = read_pixels([np.full((2, 8, 8), -0.25), np.full((2, 8, 8), -0.5)], "P")
    assert train.max() == 96 and test.max() == 64
    (train, test), _ = read_pixels([np.full((2, 8, 8), 300, np.uint16), np.full((2, 8, 8), 4000, np.uint16)], "P")
    assert train.max() == 300 >> 4 and test.max() == 4000 >> 4


UNIT, BYTES, WIDE = IMAGES / np.float32(255), IMAGES, IMAGES.astype(np.uint16) << 4


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [
        (UNIT, UNIT * 2 - 1, "are float32 from 0 to 1 and the test images are float32 from -1 to 1"),
        (UNIT * 2 - 1, UNIT, "are float32 from -1 to 1 and the test images are float32 from 0 to 1"),
        (BYTES, UNIT, "are uint8 from 0 to 255 and the test images are float32 from 0 to 1"),
        (
            BYTES.astype(np.float32),
            np.float32(BYTES > 99),
            "are float32 from 0 to 255 and the test images are float32",
        ),
        (WIDE, BYTES, "are uint16 from 0 to 4080 and the test images are uint8 from 0 to 255"),
        (BYTES, BYTES > 99, "are uint8 from 0 to 255 and the test images are bool from 0 to 1"),
    ],
)
def test_splits_and_parts_of_different_ranges_are_refused(tmp_path: Path, train: Any, test: Any, shown: str) -> None:
    with pytest.raises(DataError, match=rf"^P: the training images {shown}.*; save all in one range\.$"):
        read_pixels([train, test], "P")
    for number, images in enumerate((train, test)):
        np.savez(tmp_path / f"{number}.npz", images=images, labels=LABELS)
        np.save(tmp_path / f"images{number}.npy", images)
        np.save(tmp_path / f"labels{number}.npy", LABELS)
    with pytest.raises(DataError, match=rf": images: those of 0.npz are {shown[4:20]}.* and those of 1.npz are"):
        load_data(tmp_path)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    with pytest.raises(DataError, match=rf": images: those of images0.npy are {shown[4:20]}.* and those of images1"):
        load_data(tmp_path)


def test_parts_of_one_range_are_joined_whatever_their_whole_type(tmp_path: Path) -> None:
    for number, images in enumerate((BYTES, BYTES.astype(np.int64), BYTES.astype(np.float64))):
        np.savez(tmp_path / f"{number}.npz", images=images, labels=LABELS)
    assert set(load_data(tmp_path).class_counts) == {24}


@pytest.mark.parametrize("labels", [("labels",), ("train_labels", "test_labels")])
def test_labels_that_are_text_in_one_part_and_numbers_in_another_are_refused(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    for number, values in enumerate((LABELS, np.array([f"c{label}" for label in LABELS]))):
        arrays = dict.fromkeys(labels, values) | {label.replace("labels", "images"): IMAGES for label in labels}
        np.savez(tmp_path / f"{number}.npz", **arrays)
    with pytest.raises(DataError, match=r": labels are text in 1.npz and numbers in 0.npz; write all alike\.$"):
        load_data(tmp_path)


def test_transparency_becomes_white() -> None:
    array = np.full((1, 8, 8, 4), 100, np.uint8)
    array[..., 3] = [0] * 4 + [255] * 4
    (images,), remarks = read_pixels([array], "P")
    assert (images[0, :, :4] == 255).all() and (images[0, :, 4:] == 100).all()
    assert remarks == ("transparency was composited on white",)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 8, 8, 7)),
            r"P: images have shape \[2, 8, 8, 7\], expected \[N, H, W\], \[N, H, W, C\] or \[N, C",
        ),
        (np.full((2, 8, 8), np.nan), "P: images hold values that are no numbers"),
        (
            np.full((2, 8, 8), -3.5),
            "P: images are float64 from -3.5 to -3.5, expected 0 to 255, floats from 0 to 1 or ",
        ),
        (np.full((2, 8, 8), 70_000), "P: images are int64 from 70000 to 70000, expected 0 to 255"),
        (np.full((2, 8, 8), "x"), "P: images are <U1, expected uint8, whole numbers or floats"),
    ],
)
def test_pixels_that_cannot_be_read(array: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        read_pixels([array], "P")


class _Pairs:
    """A map-style dataset."""

    classes = ["cat", "dog", "emu", "gnu"]

    def __init__(self, form: str) -> None:
        self._form = form

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        import torch

        image, label = IMAGES[number], int(LABELS[number])
        if self._form == "pil":
            return Image.fromarray(image), label
        if self._form == "tensor":
            return torch.from_numpy(image / np.float32(255)).permute(2, 0, 1), torch.tensor(label)
        return image, np.int64(label)


@pytest.mark.parametrize("form", ["pil", "tensor", "array"])
def test_a_dataset_of_pairs(form: str) -> None:
    said: list[str] = []
    data = load_data(_Pairs(form), name="pets", say=said.append)
    assert data.name == "pets" and data.classes == ("cat", "dog", "emu", "gnu")
    reference = load_data((IMAGES, LABELS))
    assert np.array_equal(data.train_images, reference.train_images)
    both = load_data((_Pairs(form), _Pairs(form)))
    assert np.array_equal(both.train_images, IMAGES) and np.array_equal(both.test_images, IMAGES)


def test_a_torch_dataset_and_tensors() -> None:
    import torch
    from torch.utils.data import Subset, TensorDataset

    tensors = torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)
    reference = load_data((IMAGES, LABELS))
    assert load_data(tensors).fingerprint() == reference.fingerprint()
    assert load_data(TensorDataset(*tensors)).fingerprint() == reference.fingerprint()
    half = load_data((Subset(TensorDataset(*tensors), range(20)), Subset(TensorDataset(*tensors), range(20, 40))))
    assert np.array_equal(half.test_images, IMAGES[20:])
    whole = _Pairs("tensor")
    assert load_data(Subset(Subset(whole, range(30)), range(20))).classes == ("cat", "dog", "emu", "gnu")
    two = [number for number, label in enumerate(LABELS) if label < 2]
    assert load_data(Subset(whole, two)).classes == ("0", "1")


def test_pictures_of_several_sizes_in_memory() -> None:
    pairs = [(Image.fromarray(random_images(1, 16 + 8 * (n % 2), 3, n)[0]), "ab"[n % 2]) for n in range(40)]
    said: list[str] = []
    data = load_data(pairs, say=said.append)
    assert data.train_images.shape == (32, 16, 16, 3) and data.classes == ("a", "b")
    assert without_cautions(said)[0] == "data: images of 16 to 24 x 16 to 24 pixels were resized to 16 x 16"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, r"data is int: give a name or path, \(images, labels\), or a dataset with a length whose items are"),
        ({"a": 1}, "data is dict: give a name or path"),
        ([1, 2, 3], "item 0 of data is int, expected a pair of image and label"),
    ],
)
def test_what_is_no_data(data: Any, message: str) -> None:
    with pytest.raises(BadValueError, match=f"^{message}"):
        load_data(data)


def test_the_splits_of_an_npz_can_be_chosen_and_what_is_left_is_said(tmp_path: Path) -> None:
    arrays = {}
    for value, split in enumerate(("train", "val", "test")):
        arrays |= {f"x_{split}": np.full((4, 8, 8), 10 * value + 5, np.uint8), f"y_{split}": np.arange(4) % 2}
    np.savez(tmp_path / "set.npz", **arrays)
    said: list[str] = []
    data = load_data(tmp_path / "set.npz", DataOptions(split="test,val"), say=said.append)
    assert (int(data.train_images.min()), int(data.test_images.max())) == (25, 15)
    assert "set: arrays passed over: x_train, y_train" in said
    with pytest.raises(DataError, match=r"no split 'nope' \(found: train, test, val\)"):
        load_data(tmp_path / "set.npz", DataOptions(split="nope"))
    del arrays["x_test"], arrays["y_test"]
    np.savez(tmp_path / "set.npz", **arrays)
    said.clear()
    load_data(tmp_path / "set.npz", say=said.append)
    assert "set: 'x_val' serves as test split" in said


def test_bytes_of_zero_and_one_are_said_to_be_black() -> None:
    said: list[str] = []
    images = np.arange(20 * 64).reshape(20, 8, 8) % 2
    load_data((images.astype(np.uint8), np.arange(20) % 2), say=said.append)
    assert "data: no byte is above 1, so the images are nearly black; save them from 0 to 255" in said


def test_empty_arrays_are_one_sentence() -> None:
    empty = (np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="^data: an array is empty; give at least one image"):
        load_data(empty)
