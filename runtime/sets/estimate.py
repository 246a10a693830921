"""Estimates the bytes and the time of a set from a few images that are drawn and encoded."""

import time
from dataclasses import dataclass, replace

import numpy as np

from dim.runtime.errors import OutputError
from dim.runtime.set_formats.file_sizes import bound_image_bytes, round_up
from dim.runtime.set_formats.plan import SINGLE_FILE_FORMATS, Plan
from dim.runtime.set_formats.png import encode_png
from dim.runtime.sets.pipeline import Draw, choose_draw_images, choose_encoders
from dim.runtime.storage.local_store import Store
from dim.runtime.storage.place import Free, find_workshop, measure_free

TRIAL_IMAGES = 64
_SMALLEST_PNG = 67
_TAR_BLOCKS = 3 * 512  # two headers and the label


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A few images, drawn and encoded."""

    image_bytes: float
    """Bytes that an image takes on the disk."""
    seconds: float
    """Seconds an image takes, the slower of drawing and encoding."""


def try_out(plan: Plan, draw: Draw, block: int = 1) -> Trial:
    """Draw and encode the first images of a plan.

    Args:
        plan: the set's plan.
        draw: the engine, as the pipeline takes it.
        block: the unit in which the file system hands out bytes.
    """
    count = min(plan.images, max(TRIAL_IMAGES, choose_draw_images(plan.engine.batch, plan.image_bytes)))
    labels, indices = plan.samples(0, count)
    # The first run of an engine chooses kernels and allocates.
    draw(labels[:1], indices[:1])
    began = time.perf_counter()
    images, _ = draw(labels, indices)
    drawing = time.perf_counter() - began
    if plan.format in SINGLE_FILE_FORMATS:
        return Trial(image_bytes=_count_wrapped_bytes(plan, plan.image_bytes, block), seconds=drawing / count)
    began = time.perf_counter()
    sizes = [len(png) for png in encode_png(images)]
    encoding = (time.perf_counter() - began) / choose_encoders()
    mean = float(np.mean([_count_wrapped_bytes(plan, size, block) for size in sizes]))
    return Trial(image_bytes=mean, seconds=max(drawing, encoding) / count)


def bound_image_from_below(plan: Plan, block: int) -> float:
    """Bound from below the bytes that an image takes on the disk."""
    return _count_wrapped_bytes(plan, plan.image_bytes if plan.format in SINGLE_FILE_FORMATS else _SMALLEST_PNG, block)


def bound_image_from_above(plan: Plan, block: int) -> float:
    """Bound from above the bytes that an image takes on the disk."""
    bound = bound_image_bytes(plan.format, (plan.height, plan.width, plan.channels))
    return round_up(bound, block) if plan.format == "imagefolder" else bound + _count_score_bytes(plan)


def _count_wrapped_bytes(plan: Plan, data: int, block: int) -> float:
    """Add to an image's bytes what its format and the file system wrap around it."""
    around = {
        "imagefolder": round_up(data, block),
        "npz": data + 8,
        "npy": data + 8,
        "parquet": data + 32,
        "webdataset": round_up(data, 512) + _TAR_BLOCKS,
    }
    return around[plan.format] + _count_score_bytes(plan)


def _count_score_bytes(plan: Plan) -> int:
    return 2 * len(plan.classes) if plan.soft_labels else 0


def check_space(store: Store, plan: Plan, images: int, draw: Draw, freed: int = 0) -> None:
    """Refuse a set that the disk cannot hold, before it is begun.

    Args:
        store: the set's place.
        plan: the set's plan.
        images: images still to be written.
        draw: the engine, asked for a few images where the largest that there can be would not fit.
        freed: bytes that are removed first.

    Raises:
        OutputError: too few bytes or too few file entries are free, in the place or where its files are made.
    """
    if images == 0:
        return
    _check_workshop(store, plan, min(images, plan.part_images), draw)
    free = measure_free(store)
    if free is None:
        return
    free = replace(free, bytes=free.bytes + freed)
    if plan.format == "imagefolder" and images > free.files:
        raise OutputError(
            f"The set needs {images:,} files and the file system under {store} has room for {free.files:,}: "
            "choose another format, such as parquet or webdataset, or another disk."
        )
    _refuse(store, free, images * bound_image_from_below(plan, free.block), "at least")
    if images * bound_image_from_above(plan, free.block) > free.bytes:
        _refuse(store, free, images * try_out(plan, draw, free.block).image_bytes, "about")


def _check_workshop(store: Store, plan: Plan, part_images: int, draw: Draw) -> None:
    """Refuse a set of which one part does not fit where it is made before it goes to its place.

    The images of an ImageFolder go there one by one, from memory.
    """
    workshop = find_workshop(store)
    if workshop is None or plan.format == "imagefolder":
        return
    folder, free = workshop
    needed, how = part_images * bound_image_from_below(plan, 1), "at least"
    if needed <= free and part_images * bound_image_from_above(plan, 1) > free:
        needed, how = part_images * try_out(plan, draw).image_bytes, "about"
    if needed > free:
        raise OutputError(
            f"A file of the set needs {how} {format_bytes(needed)} and is made in {folder} before it goes to {store}; "
            f"{format_bytes(free)} are free there: set TMPDIR to a folder on a larger disk, or cut the set into "
            "smaller files by --shard-size."
        )


def _refuse(store: Store, free: Free, needed: float, how: str) -> None:
    if needed > free.bytes:
        raise OutputError(
            f"The set needs {how} {format_bytes(needed)} and {format_bytes(free.bytes)} are free under {store}: "
            "ask for fewer images or choose another disk."
        )


def format_bytes(size: float) -> str:
    """Write a number of bytes for people: 1,536 -> '1.5 kB'."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.0f} PB"
