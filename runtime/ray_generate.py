"""`generate` on Ray Data: a pool of actors, one engine each, makes the parts of a set wherever Ray puts them.

The actors write inside themselves and return one row per part, so nothing large moves through Ray. They share a plan, a
journal and nothing else, as the shards of `--shard i/n` do; an actor that dies is replaced by Ray, and its replacement
finds in the journal what is finished.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dim.runtime.atomic import replace_folder, temporary_sibling, write_synced
from dim.runtime.bundle import Bundle
from dim.runtime.bundle_files import check_file, load_manifest
from dim.runtime.cache import cache_dir
from dim.runtime.engine import say_to_log
from dim.runtime.errors import BadValueError, BundleError, DimError, MissingExtraError, OutputError
from dim.runtime.generate import (
    GenerateSummary,
    Meter,
    Progress,
    begin,
    complete_if_done,
    drawing,
    is_whole,
    make_parts,
    missing_parts,
    parts_of,
    summarise,
)
from dim.runtime.manifest_check import MANIFEST_NAME
from dim.runtime.set_claim import continued, engine_for, find_set, opened_store
from dim.runtime.set_files import SetFile, read_set
from dim.runtime.set_request import Wish, encoder_here, engine_info, make_wish
from dim.runtime.set_store import Store

BLOCKS_PER_WORKER = 16


@dataclass(frozen=True, kw_only=True)
class Share:
    """What every actor gets of the cluster."""

    workers: int
    gpus: int
    """GPUs per actor, 0 or 1."""
    cpus: float
    """CPUs per actor; all of them together leave one to Ray, whose own tasks would wait for ever otherwise."""


@dataclass(frozen=True, kw_only=True)
class BundleParcel:
    """A bundle on its way to machines that may not see its folder; compiled plans, which are code, stay behind."""

    path: str
    manifest_sha256: str
    options: Mapping[str, Any]
    fixed_latents: bool
    files: Mapping[str, bytes]

    def open(self, threads: int) -> Bundle:
        """Open the bundle where it is, or unpack it into this machine's private cache."""
        path = Path(self.path)
        try:
            seen = load_manifest(path).manifest_sha256 == self.manifest_sha256
        except BundleError:
            seen = False
        if not seen:
            path = self._unpack()
        options = dict(self.options) | {"threads": self.options["threads"] or threads}
        return Bundle(path, fixed_latents=self.fixed_latents, **options)

    def _unpack(self) -> Path:
        path = cache_dir() / "bundles" / f"{self.manifest_sha256}.dim"
        if not path.is_dir():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            folder = temporary_sibling(path)
            for name, data in self.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_synced(folder / name, data)
            # Two actors of one machine may do this at once; both folders are the same.
            replace_folder(folder, path)
        return path


def pack_bundle(bundle: Bundle) -> BundleParcel:
    """Read a bundle's files, checked, into a parcel."""
    names = [name for name in bundle.manifest.files if not name.endswith(".engine")]
    files = {name: check_file(bundle.path, bundle.manifest, name) for name in names}
    files[MANIFEST_NAME] = (bundle.path / MANIFEST_NAME).read_bytes()
    return BundleParcel(
        path=str(bundle.path),
        manifest_sha256=bundle.manifest.manifest_sha256,
        options=dict(bundle._options),
        fixed_latents=bundle.fixed_latents,
        files=files,
    )


class PartMaker:
    """The actor: opens the bundle and the plan's engine once, then makes the parts it is given."""

    def __init__(self, parcel: Any, out: str, wish: Wish, threads: int) -> None:
        import ray

        self._held = contextlib.ExitStack()
        parcel = ray.get(parcel)
        self._bundle = self._held.enter_context(parcel.open(threads))
        self._store = self._held.enter_context(opened_store(out))
        found = read_set(self._store)
        if found is None:
            raise _not_shared(out)
        self._plan = found.plan
        engine = self._held.enter_context(engine_for(self._bundle, found, say_to_log))
        here = encoder_here(wish.plan.format, wish.plan.soft_labels)
        mine = replace(found.plan, engine=engine_info(engine), encoder=here)
        continued(self._store, found, mine, overwrite=False)
        self._draw = drawing(self._bundle, engine, self._plan)
        self._threads = threads

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make parts; `part` int64 [N] -> the same with the images drawn and the bytes written."""
        rows: dict[str, list[int]] = {"part": [], "drawn": [], "written": []}
        for part in batch["part"].tolist():
            meter = Meter(None)
            make_parts(self._store, self._plan, self._draw, [part], meter, self._threads)
            for name, value in (("part", part), ("drawn", meter.drawn), ("written", meter.bytes)):
                rows[name].append(value)
        return {name: np.asarray(values, np.int64) for name, values in rows.items()}


def generate_on_ray(
    bundle: Bundle,
    out: str | Path,
    *,
    counts: Sequence[int],
    seed: int = 0,
    start: int = 0,
    format: str = "imagefolder",
    overwrite: bool = False,
    shard_images: int | None = None,
    shard_bytes: int | None = None,
    soft_labels: bool = False,
    num_workers: int | None = None,
    say: Callable[[str], None] = say_to_log,
    progress: Progress | None = None,
) -> GenerateSummary:
    """Write a training set on Ray, on this machine or on the cluster of `RAY_ADDRESS`; the same bytes as `generate`.

    Args:
        bundle: the open bundle; its files travel to machines that do not see its folder.
        out: a folder that every machine of the cluster shares, or a URL of an object store.
        num_workers: actors; by default one per GPU, or one per two CPUs where there is no GPU.
        progress: called after every part.
        the rest: as `dim.runtime.generate.generate`.

    Returns:
        what was done.

    Raises:
        as `generate`; MissingExtraError: Ray is not installed.
    """
    began = time.monotonic()
    wish = make_wish(
        bundle,
        counts=counts,
        seed=seed,
        start=start,
        format=format,
        shard=(0, 1),
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        soft_labels=soft_labels,
    )
    place = str(out) if "://" in str(out) else str(Path(out).absolute())
    with opened_store(place) as store:
        found = find_set(store, wish, overwrite)
        meter = Meter(progress)
        if found is not None and is_whole(store, found):
            store.clear_state()
            say(f"The set in {store} is complete already.")
            return summarise(store, found, (0, 1), meter, began)
        ray = _start_ray()
        share = share_cluster(ray.cluster_resources(), bundle._options["device"], num_workers)
        threads = max(1, int(share.cpus))
        say(
            f"Ray: {share.workers} workers with {f'{share.gpus} GPU' if share.gpus else 'no GPU'} and {share.cpus:g} "
            "CPUs each."
        )
        parcel = pack_bundle(bundle)
        # The machine that calls may have no GPU, so the plan's engine is chosen where the actors run.
        task = ray.remote(num_gpus=share.gpus, num_cpus=share.cpus, max_retries=2)(_begin_on_worker)
        _unwrap(ray, lambda: ray.get(task.remote(parcel, place, wish, overwrite, threads)))
        found = read_set(store)
        if found is None:
            raise _not_shared(place)
        refusal = f"Shard 0/1 of {store} is being written by another process: wait for it, or stop it."
        with store.lock("shard-0-of-1", refusal):
            _make_on_actors(ray, store, found, parcel, wish, place, share, threads, meter)
        found = complete_if_done(store, bundle, found)
        return summarise(store, found, (0, 1), meter, began)


def share_cluster(resources: Mapping[str, float], device: str, num_workers: int | None) -> Share:
    """Divide a cluster among actors.

    Args:
        resources: `ray.cluster_resources()`.
        device: "auto", "cpu" or "gpu".
        num_workers: actors that are wanted, or None.

    Raises:
        BadValueError: fewer than one actor, or GPUs wanted where there are none.
    """
    if num_workers is not None and num_workers < 1:
        raise BadValueError(f"num_workers is {num_workers}; it must be at least 1.")
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if device == "gpu" and not gpus:
        raise BadValueError("The device gpu was asked for and Ray's cluster has no GPU.")
    if gpus and device != "cpu":
        workers = min(num_workers or gpus, gpus)
        return Share(workers=workers, gpus=1, cpus=_portion(cpus, workers))
    workers = num_workers or max(1, cpus // 2)
    return Share(workers=workers, gpus=0, cpus=_portion(cpus, workers))


def _portion(cpus: int, workers: int) -> float:
    """Divide all CPUs but one; fractions are rounded down to hundredths."""
    portion = max(1, cpus - 1) / workers / (2 if cpus == 1 else 1)
    return float(int(portion)) if portion >= 1 else max(0.01, int(portion * 100) / 100)


def _begin_on_worker(parcel: BundleParcel, out: str, wish: Wish, overwrite: bool, threads: int) -> None:
    """Begin or reopen the set with the engine of a worker."""
    with parcel.open(threads) as bundle, opened_store(out) as store:
        found = find_set(store, wish, overwrite)
        with engine_for(bundle, found, say_to_log) as engine:
            begin(store, bundle, wish, found, engine, overwrite)


def _make_on_actors(
    ray: Any,
    store: Store,
    found: SetFile,
    parcel: BundleParcel,
    wish: Wish,
    out: str,
    share: Share,
    threads: int,
    meter: Meter,
) -> None:
    """Make the missing parts on a pool of actors and count the rows that come back."""
    plan = found.plan
    missing = missing_parts(store, plan, parts_of(plan, (0, 1)))
    meter.begin(plan.images, plan.images - plan.images_of(missing))
    if not missing:
        return
    import ray.data

    kept = ray.put(parcel)
    blocks = min(len(missing), share.workers * BLOCKS_PER_WORKER)
    rows = ray.data.from_numpy(np.asarray(missing, np.int64)).rename_columns({"data": "part"}).repartition(blocks)
    made = rows.map_batches(
        PartMaker,
        # A reference that this process keeps: an actor that is replaced must find the parcel again.
        fn_constructor_kwargs={"parcel": kept, "out": out, "wish": wish, "threads": threads},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(share.workers, len(missing))),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )

    def run() -> None:
        for row in made.iter_rows():
            start, stop = plan.span(int(row["part"]))
            meter.add(stop - start, int(row["written"]), bool(row["drawn"]))

    _unwrap(ray, run)


def _start_ray() -> Any:
    """Start Ray here or join the cluster that is there, without its bars and banners."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "ray", "generate on a cluster") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray


def _not_shared(place: str) -> OutputError:
    return OutputError(f"{place} is not the same place for every worker: name a shared folder or an object store.")


def _unwrap(ray: Any, action: Callable[[], None]) -> None:
    """Run something on Ray; an error that a worker explained arrives as itself, without Ray's wrapping."""
    try:
        action()
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        # Ray's wrapper is a DimError too where the cause is one, with the worker's traceback for a message.
        while cause is not None and (isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, DimError)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from None
        raise OutputError(f"Ray gave up: {str(error).strip().splitlines()[-1][:300]}") from error
