"""Labels as people write them, to class names and int64 labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import npz, random_images
from hypothesis import given
from hypothesis import strategies as st

from dim.data.classes.labels import name_labels
from dim.data.load import load_data
from dim.runtime.errors import DataError


def _named(train: Any, test: Any = None, classes: Any = None) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    names, labels, _, remarks = name_labels(np.asarray(train), None if test is None else np.asarray(test), classes, "P")
    assert labels.dtype == np.int64
    return names, labels.tolist(), remarks


def test_labels_from_zero_are_named_by_themselves() -> None:
    for labels in ([0, 1, 2, 1], [[0], [1], [2], [1]], [0.0, 1.0, 2.0, 1.0], np.array([0, 1, 2, 1], np.uint8)):
        assert _named(labels) == (("0", "1", "2"), [0, 1, 2, 1], ())
    assert _named([False, True]) == (("0", "1"), [0, 1], ())
    assert _named([0, 1], classes=["cat", "dog", "emu"]) == (("cat", "dog", "emu"), [0, 1], ())


def test_one_hot_rows_and_text() -> None:
    for kind in (np.float32, np.uint8, bool):
        assert _named(np.eye(3, dtype=kind)[[2, 0, 1]]) == (("0", "1", "2"), [2, 0, 1], ())
    assert _named(["dog", "cat", "dog"]) == (("cat", "dog"), [1, 0, 1], ())
    assert _named(np.array([b"dog", "ü".encode()])) == (("dog", "ü"), [0, 1], ())
    assert _named(["dog", "cat"], classes=["emu", "dog", "cat"]) == (("emu", "dog", "cat"), [1, 2], ())


def test_labels_that_count_from_one_or_leave_some_out_are_said() -> None:
    remark = "labels run from 1 to 3 and count from 1: classes are named by their labels"
    assert _named([1, 2, 3]) == (("1", "2", "3"), [0, 1, 2], (remark,))
    remark = "labels run from 0 to 9 and leave out 1, 2, 3, ...: classes are named by their labels"
    assert _named([0, 9, 5], test=[5]) == (("0", "5", "9"), [0, 2, 1], (remark,))
    assert _named([1, 2, 1], classes=["cat", "dog"]) == (
        ("cat", "dog"), [0, 1, 0], ("labels count from 1 to 2: 1 is 'cat'",)
    )  # fmt: skip


def test_both_splits_count_together() -> None:
    names, train, test, _ = name_labels(np.array([0, 2]), np.array([1, 0]), None, "P")
    assert names == ("0", "1", "2") and train.tolist() == [0, 2] and test is not None and test.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        ([0, -1], None, None, r"1 labels are negative \(-1\), as of images without a class; leave those out"),
        ([0, 3], None, ["a", "b"], "labels run from 0 to 3, expected 0 to 1 for 2 class names"),
        ([0, 2], None, ["a", "b"], "labels run from 0 to 2, expected 0 to 1 for 2 class names"),
        (["a", "c"], None, ["a", "b"], r"labels \(c\) are not among the class names; fix one or the other"),
        (["a", " "], None, None, "1 images have an empty label; fill it in"),
        ([[1, 1], [0, 1]], None, None, r"labels are int64 \[2, 2\] and not one-hot: each row needs one 1 and else"),
        ([0.5], None, None, r"labels are float64 \[1\], expected whole numbers or text \[N\], or one-hot rows"),
        (
            np.array([2**63 + 1], np.uint64),
            None,
            None,
            "a label is 9223372036854775809, more than",
        ),
        ([float("nan")], None, None, r"labels are float64 \[1\], expected whole numbers"),
        ([0, 1], ["a", "b"], None, "labels are text in one split and numbers in the other; write both alike"),
    ],
)
def test_labels_that_cannot_be_read(train: Any, test: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^P: {message}"):
        _named(train, test, classes)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_every_image_keeps_the_name_of_its_label(labels: list[int]) -> None:
    names, numbers, _ = _named(labels)
    assert [names[number] for number in numbers] == [str(label) for label in labels]


def test_a_file_whose_labels_count_from_one(tmp_path: Path) -> None:
    path, said = tmp_path / "x.npz", list[str]()
    path.write_bytes(npz(images=random_images(40, 8, 1), labels=np.arange(40) % 2 + 1))
    data = load_data(str(path), say=said.append)
    assert data.classes == ("1", "2") and data.class_counts == (16, 16)
    remark = "labels run from 1 to 2 and count from 1: classes are named by their labels"
    assert said[0] == f"x: {remark}" and remark in data.note
