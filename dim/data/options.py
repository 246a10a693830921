"""The options for reading a source, in one object."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from dim.data.limits import MAX_IMAGE_PX, MIN_IMAGE_PX
from dim.runtime.errors import BadValueError

AUTO, CLASSES, SPLITS, SPLITS_BELOW, GROUPS = "auto", "classes", "splits/classes", "classes/splits", "groups/classes"
LAYOUTS = (AUTO, CLASSES, SPLITS, SPLITS_BELOW, GROUPS)
"""What `layout` takes. `groups/classes`: folders of one name in every top folder are one class."""
_MAX_REPLAY_IPC = 1_000_000


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a source is read.

    Raises:
        BadValueError: a value is out of range.
    """

    size: int | None = None
    """Side of the images in pixels, 8 to 128; None keeps square images of one size in that range, and else takes the
    median of the shorter sides, at most 64."""
    channels: int | None = None
    """1 turns colour into grey, 3 repeats grey; None keeps grey where every image is grey, else colour."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read (counted in the note) instead of stopping at the first."""
    layout: str = AUTO
    """Where splits and classes lie in a tree of images, one of `LAYOUTS`."""
    bits: int | None = None
    """Bits that 16-bit images use, 8 to 16; None takes the smallest of 8, 10, 12, 14 and 16 that holds all values."""
    follow_links: bool = False
    """Follow symbolic links that leave the folder; those within it are always followed."""
    image_column: str | None = None
    """Column of the images or file names in a table; None takes one with a usual name."""
    label_column: str | None = None
    """Column of the labels in a table; None takes one with a usual name."""
    split: str | None = None
    """Name of the split to train on, or of that and the test split with a comma, where a source names splits; None
    takes those with usual names."""
    sha256: str | None = None
    """Of the archive behind an `https://` address, in hex."""
    replay_ipc: int = 1000
    """Images per class to draw where the source is a bundle."""
    seed: int = 0
    """Fixes the test split of a source that has none, 0 to 2**64 - 1."""

    def __post_init__(self) -> None:
        for name, low, high in (("size", MIN_IMAGE_PX, MAX_IMAGE_PX), ("bits", 8, 16)):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and low <= value <= high):
                unit = " pixels" if name == "size" else ""
                raise BadValueError(f"{name} is {value!r}: it must be between {low} and {high}{unit}.")
        if self.channels not in (None, 1, 3) or isinstance(self.channels, bool):
            raise BadValueError(f"channels is {self.channels!r}: it must be 1 (grey) or 3 (colour).")
        if not (_is_whole(self.seed) and 0 <= self.seed < 2**64):
            raise BadValueError(f"seed is {self.seed!r}: it must be between 0 and 2**64 - 1.")
        if self.layout not in LAYOUTS:
            raise BadValueError(f"layout is {self.layout!r}: it must be one of {', '.join(LAYOUTS)}.")
        if not (_is_whole(self.replay_ipc) and 1 <= self.replay_ipc <= _MAX_REPLAY_IPC):
            raise BadValueError(f"replay_ipc is {self.replay_ipc!r}: it must be between 1 and {_MAX_REPLAY_IPC}.")

    def changes(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, in plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(DataOptions, name)}


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def read_options(recorded: Mapping[str, Any]) -> DataOptions:
    """Make options of fields that a run recorded; what this release does not know is passed over.

    Raises:
        BadValueError: a value is out of range.
    """
    known = {field.name for field in fields(DataOptions)}
    return DataOptions(**{name: value for name, value in recorded.items() if name in known})
