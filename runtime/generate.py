"""`generate`: a training set on disk from a bundle, complete or resumable, the same bytes either way."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle
from dim.runtime.croissant import croissant_json
from dim.runtime.dataset_card import dataset_card, describe_set, split_like_classes
from dim.runtime.engine import Engine, open_engine, say_to_log
from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.manifest_check import FIXED_LATENTS
from dim.runtime.pipeline import Draw, run_pipeline
from dim.runtime.plan import EngineInfo, Plan, check_folder_names, choose_part_images
from dim.runtime.set_files import (
    WITH_CLASS_NAMES,
    SetFile,
    begin_set,
    complete_set,
    make_folders,
    note_part,
    noted_parts,
    part_is_there,
    read_part,
    read_set,
    refuse_foreign,
    remove_set,
    reopen,
)
from dim.runtime.set_store import LocalStore, Store, explain
from dim.runtime.sizes import MAX_PER_CLASS, check_shard
from dim.runtime.writers import part_format
from dim.runtime.writers_npz import classes_json
from dim.runtime.writers_part import PartRecord
from dim.version import __version__


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


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the caller asked for, checked; the plan without its engine."""

    plan: Plan
    shard: tuple[int, int]
    shard_images: int | None
    shard_bytes: int | None
    engine: dict[str, Any]
    """Engine, device and precision where the caller named them."""


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
    encoders: int | None = None,
    say: Callable[[str], None] = say_to_log,
    progress: Progress | None = None,
) -> GenerateSummary:
    """Write a training set, or complete one that was interrupted.

    Args:
        bundle: the open bundle.
        out: the set's folder; made if it is not there.
        counts: images per class, as `dim.runtime.sizes.resolve_counts` returns them.
        seed: 0 to 2**64 - 1.
        start: the first index of every class; continues another set of the same seed.
        format: "imagefolder", "npz", "npy", "parquet" or "webdataset".
        shard: (i, n) makes every n-th part from the i-th; n workers share a folder and nothing else.
        overwrite: replace another set, or write beside foreign files; only what the old set lists is removed.
        shard_images: images per file; by default NPZ and NPY are one file, shards of the others grow with the set.
        shard_bytes: largest file in bytes, instead of `shard_images`.
        encoders: encoding threads; None for one per core, at most 8.
        say: gets one sentence about each choice.
        progress: called after every write.

    Returns:
        what was done.

    Raises:
        BadValueError: an argument is out of range or a class cannot be a folder.
        OutputError: the folder holds another set or foreign files, another process writes this shard, the disk is full
            or went away; what is finished stays and the same call completes it.
        EngineError: the engine of the plan is not to be had or failed.
    """
    began = time.monotonic()
    wish = make_wish(bundle, counts, seed, start, format, shard, shard_images, shard_bytes)
    with opened_store(out) as store:
        found = find_set(store, wish, overwrite)
        if found is not None and found.parts is not None:
            if all(part_is_there(store, found.plan, record) for record in found.parts):
                # An earlier run may have been cut off while it cleared up.
                store.clear_state()
                say(f"The set in {store} is complete already.")
                return _summary(store, found, wish.shard, 0, 0, began)
        if format == "imagefolder" and (split_like := split_like_classes(wish.plan.classes, wish.plan.counts)):
            say(
                f"Hugging Face `imagefolder` takes the folder '{split_like[0]}' for a split: load the set by its path, "
                "load_dataset(PATH), which reads the card."
            )
        with engine_for(bundle, found, say) as engine:
            found = claim_set(store, wish, found, engine, overwrite)
            make_folders(store, found.plan)
            refusal = (
                f"Shard {shard[0]}/{shard[1]} of {store} is being written by another process: wait for it, or stop it."
            )
            meter = Meter(progress)
            with store.lock(f"shard-{shard[0]}-of-{shard[1]}", refusal):
                make_parts(store, found.plan, drawing(bundle, engine, found.plan), wish.shard, meter, encoders)
            found = complete_if_done(store, bundle, found)
    return _summary(store, found, wish.shard, meter.drawn, meter.bytes, began)


def make_wish(
    bundle: Bundle,
    counts: Sequence[int],
    seed: int,
    start: int,
    format: str,
    shard: tuple[int, int],
    shard_images: int | None,
    shard_bytes: int | None,
) -> Wish:
    """Check what the caller asks for before anything is touched; the arguments are `generate`'s."""
    manifest = bundle.manifest
    writer = part_format(format)
    if len(counts) != len(manifest.classes) or not any(counts):
        raise BadValueError(
            f"counts has {len(counts)} numbers, the largest {max(counts, default=0)}; give one number for each of "
            f"{len(manifest.classes)} classes, at least one of them above 0."
        )
    if min(counts) < 0 or start < 0 or start + max(counts) > MAX_PER_CLASS:
        raise BadValueError(
            f"start is {start} and the counts go from {min(counts)} to {max(counts)}; indices go from 0 to 2**32 - 1."
        )
    if not 0 <= seed < 2**64:
        raise BadValueError(f"The seed is {seed}; it must lie between 0 and 2**64 - 1.")
    if format == "imagefolder":
        check_folder_names(manifest.classes, counts)
        if shard_images is not None or shard_bytes is not None:
            raise BadValueError("The format imagefolder has no shards; leave out their size, or choose another format.")
    options = bundle._options
    plan = Plan(
        bundle=manifest.name,
        content_id=manifest.content_id,
        sampling_version=manifest.sampling_version,
        seed=seed,
        start=start,
        fixed_latents=bundle.fixed_latents and FIXED_LATENTS in manifest.files,
        classes=manifest.classes,
        counts=tuple(int(count) for count in counts),
        height=manifest.height,
        width=manifest.width,
        channels=manifest.channels,
        format=format,
        part_images=1,
        soft_labels=False,
        encoder=writer.encoder(),
        engine=EngineInfo(name="", version="", device="", precision="", batch=None),
    )
    # The batch that rounds the default is not known yet; this call checks the caller's own wish.
    choose_part_images(format, plan.images, (plan.height, plan.width, plan.channels), None, shard_images, shard_bytes)
    return Wish(
        plan=plan,
        shard=check_shard(shard),
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        engine={
            "name": options["engine"] if options["engine"] != "auto" else None,
            "device": options["device"] if options["device"] != "auto" else None,
            "precision": options["precision"],
        },
    )


@contextlib.contextmanager
def opened_store(out: str | Path) -> Iterator[Store]:
    """Open the place of a set and turn the operating system's errors there into sentences."""
    store: Store = LocalStore(Path(out))
    try:
        yield store
    except OSError as error:
        raise explain(error, str(store)) from error
    finally:
        store.close()


def find_set(store: Store, wish: Wish, overwrite: bool) -> SetFile | None:
    """Return the set that is there if it is the one asked for, or None where a new one may begin.

    Raises:
        OutputError: another set, or foreign files, and no `overwrite`.
    """
    try:
        found = read_set(store)
    except OutputError:
        if not overwrite:
            raise
        return None
    if found is None:
        refuse_foreign(store, wish.plan, overwrite)
        return None
    difference = differs(found, wish)
    if difference is None:
        return found
    if not overwrite:
        raise OutputError(
            f"{store} holds another set ({difference}): choose another folder, or use --overwrite to replace that set."
        )
    return None


def differs(found: SetFile, wish: Wish) -> str | None:
    """Say where the set on disk is not the one asked for, or return None."""
    open_fields = ["engine", "part_images"] + (["encoder"] if found.parts is not None else [])
    old = found.plan
    if (difference := old.difference(wish.plan, ignore=open_fields)) is not None:
        return difference
    if wish.shard_images is not None or wish.shard_bytes is not None:
        cut = choose_part_images(
            old.format,
            old.images,
            (old.height, old.width, old.channels),
            old.engine.batch,
            wish.shard_images,
            wish.shard_bytes,
        )
        if cut != old.part_images:
            return f"part_images {old.part_images} instead of {cut}"
    for key, wanted in wish.engine.items():
        if wanted is not None and getattr(old.engine, key) != wanted:
            return f"engine {key} {getattr(old.engine, key)} instead of {wanted}"
    return None


@contextlib.contextmanager
def engine_for(bundle: Bundle, found: SetFile | None, say: Callable[[str], None]) -> Iterator[Engine]:
    """Open the engine of a plan that was begun, else the bundle's own."""
    if found is None:
        yield bundle.engine
        return
    wanted, options = found.plan.engine, bundle._options
    chosen = bundle._engine
    if chosen is not None and engine_info(chosen) == wanted:
        yield chosen
        return
    engine = open_engine(
        bundle,
        engine=wanted.name,
        device=wanted.device,
        precision=wanted.precision,
        trust=options["trust"],
        threads=options["threads"],
        say=say,
    )
    try:
        yield engine
    finally:
        engine.close()


def engine_info(engine: Engine) -> EngineInfo:
    """Describe an engine as the plan has it."""
    return EngineInfo(
        name=engine.name, version=engine.version, device=engine.device, precision=engine.precision, batch=engine.batch
    )


def claim_set(store: Store, wish: Wish, found: SetFile | None, engine: Engine, overwrite: bool) -> SetFile:
    """Return the set to work on: the one found, or a new one, written down unless another worker was faster.

    Raises:
        OutputError: the set was begun with another engine, or another plan came in between.
    """
    info = engine_info(engine)
    if found is None:
        plan = wish.plan
        shape = (plan.height, plan.width, plan.channels)
        cut = choose_part_images(plan.format, plan.images, shape, info.batch, wish.shard_images, wish.shard_bytes)
        plan = plan.with_engine(info, cut)
        store.begin_state()
        with store.lock("begin"):
            # Between the first look and the lock another worker may have begun this very set.
            if (found := find_set(store, wish, overwrite)) is None:
                if overwrite:
                    _remove_old(store, plan)
                found = begin_set(store, plan, f"dim {__version__}")
    difference = found.plan.difference(replace(found.plan, engine=info, encoder=wish.plan.encoder))
    if difference is not None:
        raise OutputError(
            f"The set in {store} was begun with {difference}, and the rest would not be the same bytes: "
            "go on with that, or use --overwrite to start anew."
        )
    store.begin_state()
    return reopen(store, found) if found.parts is not None else found


def _remove_old(store: Store, plan: Plan) -> None:
    """Remove the set that is to be replaced, and check that what stays does not mix with the new one."""
    try:
        old = read_set(store)
    except OutputError:
        old = None
        store.remove("dataset.json")
    if old is not None:
        remove_set(store, old)
    refuse_foreign(store, plan, overwrite=True)


def drawing(bundle: Bundle, engine: Engine, plan: Plan) -> Draw:
    """Return the function that draws images of a plan."""

    def draw(
        labels: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16] | None]:
        latents = bundle.latents(labels, indices, plan.seed, "fixed" if plan.fixed_latents else "stream")
        return engine.run(latents, labels), None

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
    store: Store, plan: Plan, draw: Draw, shard: tuple[int, int], meter: Meter, encoders: int | None = None
) -> None:
    """Make what is missing of a shard's parts and enter each into the journal."""
    mine = range(shard[0], plan.parts, shard[1])
    missing = missing_parts(store, plan, mine)
    sizes = {part: plan.span(part)[1] - plan.span(part)[0] for part in missing}
    total = sum(plan.span(part)[1] - plan.span(part)[0] for part in mine)
    meter.begin(total, total - sum(sizes.values()))
    if not missing:
        return
    writer = part_format(plan.format)

    def finished(record: PartRecord) -> None:
        note_part(store, record)

    run_pipeline(plan, missing, draw, lambda part: writer.open(plan, store, part), finished, meter.add, encoders)


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
            return complete_set(store, current, present, set_extras(bundle, found.plan, present))
    except FileNotFoundError:
        # Another worker completed the set in the meantime and removed the journal.
        completed = read_set(store)
        if completed is None or completed.parts is None:
            raise
        return completed


def set_extras(bundle: Bundle, plan: Plan, records: Sequence[PartRecord]) -> dict[str, bytes]:
    """Make the files that stand beside the images."""
    extras = {
        "README.md": dataset_card(bundle.manifest, plan),
        "croissant.json": croissant_json(bundle.manifest, plan, records, describe_set(plan)),
    }
    if plan.format in WITH_CLASS_NAMES:
        extras["classes.json"] = classes_json(plan)
    return extras


def _summary(
    store: Store, found: SetFile, shard: tuple[int, int], drawn: int, written: int, began: float
) -> GenerateSummary:
    plan, engine = found.plan, found.plan.engine
    batch = f", batch {engine.batch}" if engine.batch is not None else ""
    return GenerateSummary(
        out=str(store),
        format=plan.format,
        images=plan.images,
        shard_images=sum(plan.span(p)[1] - plan.span(p)[0] for p in range(shard[0], plan.parts, shard[1])),
        images_drawn=drawn,
        bytes_written=written,
        seconds=time.monotonic() - began,
        parts=plan.parts,
        complete=found.parts is not None,
        engine=f"{engine.name} ({engine.version}, {engine.device}, {engine.precision}{batch})",
    )
