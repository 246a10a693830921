"""The plan of a training set: everything that determines its bytes, fixed before the first image is drawn.

A set is cut into parts of `part_images` images in the set's order. A part is the unit of work, of resuming and of
`--shard i/n` (part p belongs to shard p mod n), so which worker makes it changes nothing.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from dim.runtime.bundle_format.folder_names import check_folder_names
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.sampling.latents import order_slice
from dim.runtime.set_formats.file_sizes import bound_file_bytes, fit_images
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import to_plain

FORMATS = ("imagefolder", "npz", "npy", "parquet", "webdataset")
SINGLE_FILE_FORMATS = ("npz", "npy")
MAX_PARTS = 100_000


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """The engine that draws a set; pixels are exact for one engine, version, device kind, precision and batch."""

    name: str
    version: str
    device: str
    """`cpu` or `gpu`."""
    precision: str
    batch: int | None
    """The padded batch, or None where no padding is needed."""
    reason: str = field(default="", compare=False)
    """Why this engine was chosen; for people, another reason is no other plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is drawn, how it is cut and written."""

    bundle: str
    """The bundle's name."""
    content_id: str
    sampling_version: int
    seed: int
    start: int
    """The first index of every class."""
    fixed_latents: bool
    """Whether the bundle's optimised latents serve the first indices."""
    classes: tuple[str, ...]
    """All classes of the bundle; labels number these, also where some have no image."""
    counts: tuple[int, ...]
    """Images per class."""
    height: int
    width: int
    channels: int
    format: str
    part_images: int
    teacher: str
    """SHA-256 of the bundle's teacher, which scores every image; empty without soft labels."""
    encoder: str
    """The library that turns pixels into bytes, with its version; another one may give other bytes."""
    engine: EngineInfo

    @cached_property
    def identity(self) -> str:
        """Eight hexadecimal digits that other plans do not share; in the names of files that readers cache by name."""
        described = to_plain(replace(self, engine=replace(self.engine, reason="")))
        return hashlib.sha256(strict_json.write_canonical(described)).hexdigest()[:8]

    @property
    def images(self) -> int:
        """Images in the whole set."""
        return sum(self.counts)

    @property
    def parts(self) -> int:
        """Parts in the whole set."""
        return -(-self.images // self.part_images)

    @property
    def soft_labels(self) -> bool:
        """Whether logits are written beside the images."""
        return bool(self.teacher)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's pixels."""
        return self.height * self.width * self.channels

    def span(self, part: int) -> tuple[int, int]:
        """Return the positions start, stop of a part in the set's order."""
        return part * self.part_images, min((part + 1) * self.part_images, self.images)

    def images_of(self, parts: Iterable[int]) -> int:
        """Count the images of some parts."""
        return sum(stop - start for start, stop in map(self.span, parts))

    def samples(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """List labels int64 [N] and indices int64 [N] of the positions start..stop-1, the set's `start` added."""
        labels, indices = order_slice(self.counts, start, stop)
        return labels, indices + self.start

    def check(self) -> None:
        """Check the ranges of a plan that a stranger may have written.

        Raises:
            OutputError: a field is out of range or contradicts another.
        """
        if not len(self.classes) == len(self.counts) <= MAX_CLASSES:
            raise _malformed("plan.classes", self.classes)
        if not all(0 <= count <= 2**32 for count in self.counts) or not any(self.counts):
            raise _malformed("plan.counts", self.counts)
        for name in ("height", "width", "channels", "part_images"):
            if not 1 <= getattr(self, name) <= 2**40:
                raise _malformed(f"plan.{name}", getattr(self, name))
        if (
            self.format not in FORMATS
            or self.parts > MAX_PARTS
            or not 0 <= self.seed < 2**64
            or not 0 <= self.start <= 2**32 - max(self.counts)
        ):
            raise _malformed("plan", f"{self.format}, {self.parts} parts, seed {self.seed}, start {self.start}")
        if self.format == "imagefolder":
            try:
                check_folder_names(self.classes, self.counts)
            except BadValueError:
                # Files of a set are named by its classes, and --overwrite removes them.
                raise _malformed("plan.classes", self.classes) from None

    def describe_difference(self, other: "Plan", ignore: Sequence[str] = ()) -> str | None:
        """Say in words where two plans differ, or return None where they agree.

        Args:
            other: the plan that is asked for; this one is the one on disk.
            ignore: names of fields that may differ.
        """
        for name in [each.name for each in fields(self)]:
            if name in ignore:
                continue
            old, new = getattr(self, name), getattr(other, name)
            if old != new:
                if name == "counts":
                    return self._describe_counts(other)
                if name == "classes" and len(str(old)) + len(str(new)) > 120:
                    return "another list of classes"
                if name == "engine":
                    return " and ".join(
                        f"engine {key} {old_value} instead of {getattr(new, key)}"
                        for key, old_value in vars(old).items()
                        if key != "reason" and old_value != getattr(new, key)
                    )
                short = [f"{value[:12]}..." if name == "content_id" else value for value in (old, new)]
                return f"{name} {short[0]} instead of {short[1]}"
        return None

    def _describe_counts(self, other: "Plan") -> str:
        """Say how many images this plan has, and the other one."""
        each, wanted = set(self.counts), set(other.counts)
        if len(each) == len(wanted) == 1:
            return f"{each.pop():,} images per class instead of {wanted.pop():,}"
        if self.images != other.images:
            return f"{self.images:,} images instead of {other.images:,}"
        return f"other numbers of images per class, {self.images:,} in all"


def choose_part_images(
    format: str,
    images: int,
    image_hwc: tuple[int, int, int],
    batch: int | None,
    shard_images: int | None = None,
    shard_bytes: int | None = None,
    classes: Sequence[str] = ("",),
    soft_labels: bool = False,
) -> int:
    """Decide how many images make a part, from the plan alone so that every worker cuts alike.

    Args:
        format: one of FORMATS.
        images: images in the set.
        image_hwc: height, width and channels.
        batch: the engine's padded batch, or None.
        shard_images: images per file, where the user said so.
        shard_bytes: largest file in bytes, where the user said so.
        classes: all classes of the bundle; their names take space in some files.
        soft_labels: whether logits are written for every image.

    Returns:
        images per part. Without a wish: NPZ and NPY are one file; ImageFolder's parts (which no reader sees) and the
        shards of Parquet and WebDataset grow with the set and stay below 256 MiB of pixels.

    Raises:
        BadValueError: both wishes at once, a wish that fits no image, or more than MAX_PARTS parts.
    """
    if shard_images is not None and shard_bytes is not None:
        raise BadValueError("Give the size of a shard in images or in bytes, not both.")
    if shard_images is not None and shard_images < 1:
        raise BadValueError(f"A shard of {shard_images} images cannot be made; it must hold at least 1.")
    if shard_bytes is not None:
        shard_images = fit_images(shard_bytes, images, format, image_hwc, classes, soft_labels)
        if shard_images < 1:
            least = bound_file_bytes(format, 1, image_hwc, classes, soft_labels)
            raise BadValueError(
                f"A shard of {shard_bytes:,} bytes does not hold one image, whose {format} file may need {least:,}."
            )
    if shard_images is not None:
        size = min(shard_images, images)
    elif format in SINGLE_FILE_FORMATS:
        size = images
    else:
        smallest, share = (256, 64) if format == "imagefolder" else (10_000, 256)
        ceiling = max(64, 2**28 // math.prod(image_hwc))
        size = min(max(smallest, -(-images // share)), 16_384 if format == "imagefolder" else 2**20, ceiling)
        size = max(size, -(-images // MAX_PARTS))
        if batch is not None:
            size = -(-size // batch) * batch
    if -(-images // size) > MAX_PARTS:
        raise BadValueError(
            f"{images:,} images in shards of {size:,} are more than {MAX_PARTS:,} shards; ask for larger ones."
        )
    return size


def _malformed(where: str, value: object) -> OutputError:
    return OutputError(
        f"dataset.json is malformed at {where}: found {str(value)[:80]!r}; make the set in another folder, or move "
        "this one away first."
    )
