"""`accepted.bin`: a round trip, and malformed files."""

import numpy as np
import pytest

from dim.runtime.bundle_format.accepted_file import MAX_ACCEPTED_BYTES, read_accepted, write_accepted
from dim.runtime.errors import BadValueError, BundleError

BITS = np.random.default_rng(0).random((3, 40)) < 0.6
GOOD = write_accepted(11, BITS)


def test_round_trip() -> None:
    read = read_accepted(GOOD, 3)
    assert (read.key, read.per_class, read.num_accepted) == (11, 40, int(BITS.sum()))
    for label, row in enumerate(BITS):
        assert read.numbers[read.starts[label] : read.starts[label + 1]].tolist() == np.flatnonzero(row).tolist()
    assert len(GOOD) == 16 + 3 * 5


def head(key: int, num_classes: int, per_class: int) -> bytes:
    return key.to_bytes(8, "little") + num_classes.to_bytes(4, "little") + per_class.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is of 0 classes; the bundle has 3"),
        (GOOD[:15], "is of 0 classes; the bundle has 3"),
        (GOOD[:-1], "has 30 bytes and speaks of 40 candidates per class; that does not fit"),
        (GOOD + b"\0", "has 32 bytes and speaks of 40 candidates per class"),
        (head(1, 4, 40) + bytes(20), "is of 4 classes; the bundle has 3"),
        (head(1, 3, 36) + b"\xff" * 13, "36 candidates per class; that does not fit"),
        (head(1, 3, 0), "0 candidates per class; that does not fit"),
        (head(1, 3, 8) + b"\xff\0\1", "is malformed: Class 1 has no accepted candidate"),
        (head(1, 3, 2**23) + b"\xff" * (3 * 2**20), f"at most {MAX_ACCEPTED_BYTES:,} are read"),
    ],
)
def test_malformed_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_accepted(data, 3)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(BadValueError, match="There are 3 candidates per class; it must be a multiple of 8"):
        write_accepted(0, np.ones((2, 3), bool))
    with pytest.raises(BadValueError, match="The seed is"):
        write_accepted(-1, np.ones((2, 8), bool))
