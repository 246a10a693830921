"""`generate`: a training set on disk from a bundle, complete or resumable, the same bytes either way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle
from dim.runtime.engines.base import Engine
from dim.runtime.messages import say_to_log
from dim.runtime.set_formats.npz import classes_json
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import part_format
from dim.runtime.sets.card import dataset_card, describe_set, split_like_classes
from dim.runtime.sets.claim import claim_set, continued, engine_for, find_set, old_bytes, opened_store
from dim.runtime.sets.croissant import croissant_json
from dim.runtime.sets.estimate import check_space
from dim.runtime.sets.journal import (
    WITH_CLASS_NAMES,
    SetFile,
    complete_set,
    make_folders,
    note_part,
    noted_parts,
    part_is_there,
    read_part,
    read_set,
)
from dim.runtime.sets.pipeline import Draw, check_encoders, run_pipeline
from dim.runtime.sets.request import Wish, engine_info, make_wish
from dim.runtime.sets.soft_labels import open_teacher
from dim.runtime.storage.local_store import Store


class Progress(Protocol):
    """Called after every write with this worker's images done and in all, and the bytes written by this run."""

    def __call__(self, images_done: int, images_total: int, bytes_written: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class GenerateSummary:
    """What a run did."""

    out: str
    format: str
    images: int
    """Images of the whole set."""
    shard_images: int
    """Images that fell to this worker."""
    images_drawn: int
    """Images that this run drew; the rest was there already."""
    bytes_written: int
    seconds: float
    parts: int
    """Parts of the whole set."""
    complete: bool
    """Whether every part of the set is there."""
    engine: str
    """The engine of the plan, with its version, device, precision and batch."""


def generate(
    bundle: Bundle,
    out: str | Path,
    *,
    counts: Sequence[int],
    seed: int = 0,
    start: int = 0,
    format: str = "imagefolder",
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    shard_images: int | None = None,
    shard_bytes: int | None = None,
    soft_labels: bool = False,
    encoders: int | None = None,
    say: Callable[[str], None] = say_to_log,
    progress: Progress | None = None,
) -> GenerateSummary:
    """Write a training set, or complete one that was interrupted.

    Args:
        bundle: the open bundle.
        out: the set's folder, made if it is not there, or a URL of an object store, such as `s3://bucket/set`.
        counts: images per class, as `dim.runtime.sampling.counts.resolve_counts` returns them.
        seed: 0 to 2**64 - 1.
        start: the first index of every class; continues another set of the same seed.
        format: "imagefolder", "npz", "npy", "parquet" or "webdataset".
        shard: (i, n) makes every n-th part from the i-th; n workers share a folder and nothing else.
        overwrite: replace another set, or write beside foreign files; only what the old set lists is removed.
        shard_images: images per file; by default NPZ and NPY are one file, shards of the others grow with the set.
        shard_bytes: largest file in bytes, instead of `shard_images`.
        soft_labels: write the logits of the bundle's teacher beside the images, float16 [N, K].
        encoders: PNG files made at once, 1 to 64, by processes of 15 MiB each; None for one per core but one, at least
            1 and at most 2.
        say: gets one sentence about each choice.
        progress: called after every write.

    Returns:
        what was done.

    Raises:
        BadValueError: an argument is out of range or a class cannot be a folder.
        BundleError: soft labels are wanted and the bundle has no teacher.
        OutputError: the folder holds another set or foreign files, another process writes this shard, the disk is too
            small, full or went away; what is finished stays and the same call completes it.
        EngineError: the engine of the plan is not to be had or failed.
    """
    began = time.monotonic()
    check_encoders(encoders)
    wish = make_wish(
        bundle,
        counts=counts,
        seed=seed,
        start=start,
        format=format,
        shard=shard,
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        soft_labels=soft_labels,
    )
    meter = Meter(progress)
    with opened_store(out) as store:
        found = find_set(store, wish, overwrite)
        if found is not None and is_whole(store, found):
            # An earlier run may have been cut off while it cleared up.
            store.clear_state()
            say(f"The set in {store} is complete already.")
            return summarise(store, found, shard, meter, began)
        store.check_place()
        if found is None:
            check_space(store, wish.plan, wish.plan.images, None, old_bytes(store))
        _warn_of_splits(wish.plan, say)
        with engine_for(bundle, found, say) as engine:
            found = begin(store, bundle, wish, found, engine, overwrite)
            refusal = (
                f"Shard {shard[0]}/{shard[1]} of {store} is being written by another process: wait for it, or stop it."
            )
            with store.lock(f"shard-{shard[0]}-of-{shard[1]}", refusal):
                make_parts(
                    store, found.plan, drawing(bundle, engine, found.plan), parts_of(found.plan, shard), meter, encoders
                )
            found = complete_if_done(store, bundle, found)
    return summarise(store, found, shard, meter, began)


def begin(store: Store, bundle: Bundle, wish: Wish, found: SetFile | None, engine: Engine, overwrite: bool) -> SetFile:
    """Check the engine and the disk, then return the set to work on, begun if it is new."""
    plan = planned(wish, engine)
    found = continued(store, found, plan, overwrite)
    if found is None:
        check_space(store, plan, plan.images, drawing(bundle, engine, plan), old_bytes(store))
    claimed = claim_set(store, wish, found, plan, overwrite)
    # Another worker may have begun it with another engine.
    continued(store, claimed, plan, overwrite=False)
    if found is not None:
        check_space(store, claimed.plan, images_left(store, claimed.plan), drawing(bundle, engine, claimed.plan))
    make_folders(store, claimed.plan)
    return claimed


def images_left(store: Store, plan: Plan) -> int:
    """Count the images of a set that was begun which no shard has finished: every shard goes to the same disk."""
    return plan.images_of(set(range(plan.parts)) - noted_parts(store))


def planned(wish: Wish, engine: Engine) -> Plan:
    """Fill in the engine and the cut of a new plan."""
    info = engine_info(engine)
    return wish.plan.with_engine(info, wish.cut(info.batch))


def is_whole(store: Store, found: SetFile) -> bool:
    """Say whether a set is complete and its files are there."""
    return found.parts is not None and all(part_is_there(store, found.plan, record) for record in found.parts)


def parts_of(plan: Plan, shard: tuple[int, int]) -> range:
    """List the parts that fall to a shard."""
    return range(shard[0], plan.parts, shard[1])


def drawing(bundle: Bundle, engine: Engine, plan: Plan) -> Draw:
    """Return the function that draws images of a plan, and scores them where it has a teacher."""
    use = "fixed" if plan.fixed_latents else "stream"
    score = open_teacher(bundle, bundle.engine_options.threads) if plan.soft_labels else None

    def draw(
        labels: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16] | None]:
        images = engine.run(bundle.latents(labels, indices, plan.seed, use), labels)
        return images, score(images) if score is not None else None

    return draw


class Meter:
    """Counts what a run does and reports it."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.total = self.done = self.drawn = self.bytes = 0

    def begin(self, total: int, done: int) -> None:
        """Set this worker's share and how much of it is there."""
        self.total, self.done = total, done
        self._report()

    def add(self, images: int, written: int, drawn: bool) -> None:
        """Count images, the bytes written for them, and whether this run drew them."""
        self.done += images
        self.bytes += written
        self.drawn += images if drawn else 0
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.done, self.total, self.bytes)


def make_parts(
    store: Store, plan: Plan, draw: Draw, parts: Sequence[int], meter: Meter, encoders: int | None = None
) -> None:
    """Make what is missing of some parts and enter each into the journal."""
    missing = missing_parts(store, plan, parts)
    meter.begin(plan.images_of(parts), plan.images_of(parts) - plan.images_of(missing))
    if missing:
        writer = part_format(plan.format)
        run_pipeline(
            plan,
            missing,
            draw,
            lambda part: writer.open(plan, store, part),
            lambda record: note_part(store, record),
            meter.add,
            store.flush,
            encoders,
        )


def missing_parts(store: Store, plan: Plan, parts: Sequence[int]) -> list[int]:
    """List the parts that are not in the journal or of which a file went missing."""
    noted, missing = noted_parts(store), []
    for part in parts:
        record = read_part(store, part) if part in noted else None
        if record is None or not part_is_there(store, plan, record):
            missing.append(part)
    return missing


def complete_if_done(store: Store, bundle: Bundle, found: SetFile) -> SetFile:
    """Complete the set if every part is in the journal; any worker may, all write the same bytes."""
    try:
        if len(noted_parts(store)) < found.plan.parts:
            return read_set(store) or found
        with store.lock("complete"):
            current = read_set(store) or found
            records = [read_part(store, part) for part in range(found.plan.parts)]
            present = [record for record in records if record is not None]
            if current.parts is not None or len(present) < found.plan.parts:
                return current
            plan = found.plan
            extras = {
                "README.md": dataset_card(bundle.manifest, plan),
                "croissant.json": croissant_json(bundle.manifest, plan, present, describe_set(plan)),
            }
            if plan.format in WITH_CLASS_NAMES:
                extras["classes.json"] = classes_json(plan)
            return complete_set(store, current, present, extras)
    except FileNotFoundError:
        # Another worker completed the set in the meantime and removed the journal.
        completed = read_set(store)
        if completed is None or completed.parts is None:
            raise
        return completed


def name_engine(plan: Plan) -> str:
    """Name a plan's engine with all that decides its pixels."""
    engine = plan.engine
    batch = f", batch {engine.batch}" if engine.batch is not None else ""
    return f"{engine.name} ({engine.version}, {engine.device}, {engine.precision}{batch})"


def _warn_of_splits(plan: Plan, say: Callable[[str], None]) -> None:
    if plan.format == "imagefolder" and (split_like := split_like_classes(plan.classes, plan.counts)):
        say(
            f"Hugging Face `imagefolder` takes the folder '{split_like[0]}' for a split: load the set by its path, "
            "load_dataset(PATH), which reads the card."
        )


def summarise(store: Store, found: SetFile, shard: tuple[int, int], meter: Meter, began: float) -> GenerateSummary:
    """Say what a run did that began at `began` on the monotonic clock."""
    plan = found.plan
    return GenerateSummary(
        out=str(store),
        format=plan.format,
        images=plan.images,
        shard_images=plan.images_of(parts_of(plan, shard)),
        images_drawn=meter.drawn,
        bytes_written=meter.bytes,
        seconds=time.monotonic() - began,
        parts=plan.parts,
        complete=found.parts is not None,
        engine=name_engine(plan),
    )
