"""`generate`: a training set on disk from a bundle, complete or resumable, the same bytes either way."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle
from dim.runtime.engines.base import Engine
from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import Progress, ProgressOption, show_progress
from dim.runtime.set_formats.npz import encode_class_names
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.card import list_split_like_classes, write_card
from dim.runtime.sets.claim import claim_shard, clear_up, open_engine_for
from dim.runtime.sets.contents import Contents, check_resumable, examine_place
from dim.runtime.sets.croissant import write_croissant
from dim.runtime.sets.estimate import check_space
from dim.runtime.sets.finished import (
    count_images_left,
    is_whole,
    list_altered_parts,
    list_finished_parts,
)
from dim.runtime.sets.journal import (
    SET_LOCK,
    WITH_CLASS_NAMES,
    SetFile,
    complete_set,
    list_noted_parts,
    note_part,
    read_part,
    read_set,
)
from dim.runtime.sets.pipeline import Draw, run_pipeline
from dim.runtime.sets.request import SetRequest, describe_engine
from dim.runtime.sets.soft_labels import open_teacher
from dim.runtime.storage.local_store import Store
from dim.runtime.storage.place import check_place, open_store
from dim.runtime.units import format_units


@dataclass(frozen=True, kw_only=True)
class GenerateSummary:
    """What a run did."""

    out: str
    """The set's folder or URL."""
    format: str
    """Name of the format."""
    images: int
    """Images of the whole set."""
    shard_images: int
    """Images that fell to this worker."""
    images_drawn: int
    """Images that this run drew; the rest was there already."""
    bytes_written: int
    """Bytes that this run wrote."""
    seconds: float
    """How long this run took."""
    parts: int
    """Parts of the whole set."""
    complete: bool
    """Whether every part of the set is there."""
    engine: str
    """The engine of the plan, with its version, device, precision and batch."""


def generate(
    bundle: Bundle,
    request: SetRequest,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    check: bool = False,
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
) -> GenerateSummary:
    """Write a training set, or complete one that was interrupted.

    Args:
        bundle: the open bundle.
        request: what the set is to hold.
        out: the set's folder, made if it is not there, or a URL of an object store, such as `s3://bucket/set`.
        shard: (i, n) makes every n-th part from the i-th; n workers share a folder and nothing else.
        overwrite: replace another set, or write beside foreign files; only what the old set lists is removed.
        check: hash every finished part again; otherwise the newest ones, and of the others only the sizes.
        say: gets one sentence about each choice.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. Counts this worker's images.

    Returns:
        what was done.

    Raises:
        BadValueError: the request does not suit the bundle, or the shard or `out` cannot be.
        BundleError: soft labels are wanted and the bundle has no teacher.
        OutputError: the folder holds another set or foreign files, or a file of the set was altered; another process
            writes this shard; the disk is too small, full or went away; what is finished stays and the same call
            completes it.
        EngineError: the engine of the plan is not to be had or failed.

    Examples:
        >>> with open_bundle() as bundle:
        ...     generate(bundle, SetRequest(ipc=50), "data")
    """
    began = time.monotonic()
    check_shard(shard)
    request.check(bundle)
    say_what_seed_keeps(bundle, request, say)
    with show_progress(progress) as report, open_store(out) as store:
        meter = Meter(report)
        contents = examine_place(store, bundle, request, overwrite)
        if contents.same is not None and is_finished(store, contents.same, check):
            clear_up(store)
            say(f"The set in {store} is complete already.")
            return summarise(store, contents.same, shard, meter, began)
        check_place(store)
        with open_engine_for(bundle, contents.same, say) as engine:
            prepared = prepare(store, bundle, request, contents, engine, overwrite)
            _warn_of_splits(prepared.plan, say)
            with claim_shard(store, bundle, request, prepared.plan, shard, overwrite) as begun:
                _make_parts(store, begun, prepared.draw, shard, meter, request.encoders, check)
                ended = _complete_if_done(store, bundle, begun)
        return summarise(store, ended, shard, meter, began)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is settled once the engine is open and before anything is written."""

    plan: Plan
    """The plan of the set that is resumed, or of a new one."""
    contents: Contents
    """What lies in the place; a set that this engine cannot resume is another set."""
    draw: Draw


def prepare(
    store: Store, bundle: Bundle, request: SetRequest, contents: Contents, engine: Engine, overwrite: bool
) -> Prepared:
    """Settle the plan, and check that the disk has room for what is missing of it.

    Raises:
        OutputError: the set was begun with another engine, and no `overwrite`; or the disk is too small.
    """
    here = request.plan(bundle, describe_engine(engine))
    settled = check_resumable(store, contents, here, overwrite)
    plan = settled.same.plan if settled.same is not None else here
    draw = make_draw(bundle, engine, plan)
    left = count_images_left(store, settled.same) if settled.same is not None else plan.images
    check_space(store, plan, left, draw, settled.freed_bytes)
    return Prepared(plan=plan, contents=settled, draw=draw)


def check_shard(shard: tuple[int, int]) -> None:
    """Raise BadValueError unless the shard (i, n) has 0 <= i < n."""
    index, count = shard
    if count < 1:
        raise BadValueError(f"The shard is {index}/{count}; the number of shards must be at least 1.")
    if not 0 <= index < count:
        raise BadValueError(f"The shard is {index}/{count}; shards are counted from 0/{count} to {count - 1}/{count}.")


def list_parts(plan: Plan, shard: tuple[int, int]) -> range:
    """List the parts that fall to a shard."""
    return range(shard[0], plan.parts, shard[1])


def make_draw(bundle: Bundle, engine: Engine, plan: Plan) -> Draw:
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

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began, self._done_before = time.monotonic(), 0
        self.total = self.done = self.drawn = self.bytes = 0

    def set_share(self, total: int, done: int) -> None:
        """Set this worker's share and how much of it is there."""
        if not self.total:
            self._began, self._done_before = time.monotonic(), done
        self.total, self.done = total, done
        self._report()

    def add(self, images: int, written: int) -> None:
        """Count images that this run drew, and the bytes written for them."""
        self.done += images
        self.drawn += images
        self.bytes += written
        self._report()

    def _report(self) -> None:
        images_per_s = (self.done - self._done_before) / max(time.monotonic() - self._began, 1e-9)
        note = f"{images_per_s:,.0f} images/s, {format_units(self.bytes, 'B')} written"
        self._progress("generating", self.done, self.total, note)


def is_finished(store: Store, found: SetFile, check: bool) -> bool:
    """Say whether a set is complete and was not altered, as far as `generate` looks.

    Raises:
        OutputError: a file was altered.
    """
    if found.written is None or not is_whole(store, found):
        return False
    return not list_altered_parts(store, found.plan, found.written.parts, check)


def _make_parts(
    store: Store,
    begun: SetFile,
    draw: Draw,
    shard: tuple[int, int],
    meter: Meter,
    encoders: int | None,
    check: bool,
) -> None:
    """Make what is missing of a shard and enter each part into the journal."""
    plan, parts = begun.plan, list_parts(begun.plan, shard)
    finished = list_finished_parts(store, begun, parts)
    kept = {record.part for record in finished} - set(list_altered_parts(store, plan, finished, check))
    missing = [part for part in parts if part not in kept]
    meter.set_share(plan.images_of(parts), plan.images_of(kept))
    if missing:
        writer = find_format(plan.format)
        run_pipeline(
            plan,
            missing,
            draw,
            open_part=lambda part: writer.open(plan, store, part),
            finished=lambda record: note_part(store, record),
            written=meter.add,
            flush=store.flush,
            encoders=encoders,
        )


def _complete_if_done(store: Store, bundle: Bundle, begun: SetFile) -> SetFile:
    """Complete the set if every part is in the journal; any worker may, all write the same bytes."""
    plan = begun.plan
    try:
        if len(list_noted_parts(store)) < plan.parts:
            return read_set(store) or begun
        with store.lock(SET_LOCK):
            found = read_set(store) or begun
            if found.plan != plan:
                raise OutputError(f"Another process replaced the set in {store} meanwhile: choose another folder.")
            records = [record for part in range(plan.parts) if (record := read_part(store, plan, part)) is not None]
            if found.complete or len(records) < plan.parts:
                return found
            extras = {
                "README.md": write_card(bundle.manifest, plan),
                "croissant.json": write_croissant(bundle.manifest, plan, records),
            }
            if plan.format in WITH_CLASS_NAMES:
                extras["classes.json"] = encode_class_names(plan)
            return complete_set(store, found, records, extras)
    except FileNotFoundError:
        # Another worker completed the set in the meantime and removed the journal.
        found = read_set(store) or begun
        if not found.complete:
            raise
        return found


def name_engine(plan: Plan) -> str:
    """Name a plan's engine with all that decides its pixels."""
    engine = plan.engine
    batch = f", batch {engine.batch}" if engine.batch is not None else ""
    return f"{engine.name} ({engine.version}, {engine.device}, {engine.precision}{batch})"


def say_what_seed_keeps(bundle: Bundle, request: SetRequest, say: Callable[[str], None]) -> None:
    """Say which images another seed than 0 leaves as they are, because the bundle optimised their latents."""
    if request.seed and (kept := bundle.count_fixed_latents() - request.start) > 0:
        say(
            f"Seed {request.seed} does not change the first {kept:,} images of each class, whose latents the bundle "
            "optimised: with --no-fixed-latents the seed draws these too."
        )


def _warn_of_splits(plan: Plan, say: Callable[[str], None]) -> None:
    if plan.format == "imagefolder" and (split_like := list_split_like_classes(plan.classes, plan.counts)):
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
        shard_images=plan.images_of(list_parts(plan, shard)),
        images_drawn=meter.drawn,
        bytes_written=meter.bytes,
        seconds=time.monotonic() - began,
        parts=plan.parts,
        complete=found.complete,
        engine=name_engine(plan),
    )
