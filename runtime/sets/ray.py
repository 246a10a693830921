"""`generate` on Ray Data: a pool of actors, one engine each, makes the parts of a set wherever Ray puts them.

The actors write inside themselves and return one row per part, so nothing large moves through Ray. They share a plan, a
journal and nothing else, as the shards of `--shard i/n` do; an actor that dies is replaced by Ray, and its replacement
finds in the journal what is finished.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError, BundleError, DimError, MissingExtraError, OutputError
from dim.runtime.messages import say_to_log
from dim.runtime.sets.claim import check_url, continued, engine_for, find_set, opened_store
from dim.runtime.sets.generate import (
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
from dim.runtime.sets.journal import SetFile, read_set
from dim.runtime.sets.request import Wish, encoder_here, engine_info, make_wish
from dim.runtime.storage.atomic import replace_folder, temporary_sibling, write_synced
from dim.runtime.storage.local_store import Store
from dim.runtime.storage.private_cache import cache_dir

BLOCKS_PER_WORKER = 16


@dataclass(frozen=True, kw_only=True)
class Share:
    """What every actor gets of the cluster."""

    workers: int
    gpus: int
    """GPUs per actor, 0 or 1."""
    cpus: float
    """CPUs per actor, no more than one machine has; a CPU is left to Ray, whose own tasks would wait for ever
    otherwise."""


@dataclass(frozen=True, kw_only=True)
class BundleParcel:
    """A bundle on its way to machines that may not see its folder; compiled plans, which are code, stay behind."""

    path: str
    manifest_sha256: str
    options: EngineOptions
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
        options = replace(self.options, threads=self.options.threads or threads)
        return Bundle(path, options, fixed_latents=self.fixed_latents)

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
    files = {name: read_checked_file(bundle.path, bundle.manifest, name) for name in names}
    files[MANIFEST_NAME] = (bundle.path / MANIFEST_NAME).read_bytes()
    return BundleParcel(
        path=str(bundle.path),
        manifest_sha256=bundle.manifest.manifest_sha256,
        options=bundle.engine_options,
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
        the rest: as `dim.runtime.sets.generate.generate`.

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
    check_workers(num_workers)
    check_url(out)
    place = str(out) if "://" in str(out) else str(Path(out).absolute())
    with opened_store(place) as store:
        found = find_set(store, wish, overwrite)
        meter = Meter(progress)
        if found is not None and is_whole(store, found):
            store.clear_state()
            say(f"The set in {store} is complete already.")
            return summarise(store, found, (0, 1), meter, began)
        store.check_place()
        ray = _start_ray()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = share_cluster(nodes, bundle.engine_options.device, num_workers)
        threads = max(1, int(share.cpus))
        say(
            f"Ray: {share.workers} worker{'s' * (share.workers != 1)} with "
            f"{f'{share.gpus} GPU' if share.gpus else 'no GPU'} and {share.cpus:g} CPUs each."
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


def check_workers(num_workers: int | None) -> None:
    """Check what can be told of a run on Ray before Ray is started.

    Raises:
        BadValueError: fewer than one worker.
        MissingExtraError: Ray is not installed.
    """
    if num_workers is not None and num_workers < 1:
        raise BadValueError(f"num_workers is {num_workers}; it must be at least 1.")
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "generate on a cluster")


def share_cluster(nodes: Sequence[Mapping[str, float]], device: str, num_workers: int | None) -> Share:
    """Divide a cluster among actors that are all alike.

    Args:
        nodes: the resources of every machine that is alive, "CPU" and "GPU", as `ray.nodes()` has them.
        device: "auto", "cpu" or "gpu".
        num_workers: actors that are wanted, or None.

    Returns:
        the largest share with which Ray can place every actor, in whatever order, on a machine that has so much, and
        still has a CPU on one machine for its own tasks.

    Raises:
        BadValueError: fewer than one actor, more than fit, or GPUs wanted where there are none.
    """
    if num_workers is not None and num_workers < 1:
        raise BadValueError(f"num_workers is {num_workers}; it must be at least 1.")
    # Hundredths of a CPU, because Ray hands out fractions and floating point cannot add them up.
    sizes = [(round(100 * node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    sizes = [(cpus, gpus) for cpus, gpus in sizes if cpus > 0]
    all_cpus, all_gpus = sum(cpus for cpus, _ in sizes) // 100, sum(gpus for _, gpus in sizes)
    if device == "gpu" and not all_gpus:
        raise BadValueError("The device gpu was asked for and Ray's cluster has no GPU on a machine with CPUs.")
    gpu = 1 if all_gpus and device != "cpu" else 0
    workers = min(num_workers or all_gpus, all_gpus) if gpu else num_workers or max(1, all_cpus // 2)
    largest = max((cpus for cpus, _ in sizes), default=0) // 100
    for share in (*range(100 * largest, 0, -100), *range(99, 0, -1)):
        if _fits(sizes, workers, gpu, share, spare=100):
            return Share(workers=workers, gpus=gpu, cpus=share / 100)
    # Machines of one CPU each: what is left of it has to do for Ray.
    for share in range(50, 0, -1):
        if _fits([(cpus // 2, gpus) for cpus, gpus in sizes], workers, gpu, share, spare=0):
            return Share(workers=workers, gpus=gpu, cpus=share / 100)
    raise BadValueError(
        f"Ray's cluster, {all_cpus:,} CPUs on {len(nodes):,} machine{'s' * (len(nodes) != 1)}, has no room for "
        f"{workers:,} worker{'s' * (workers != 1)}: ask for fewer, or give Ray more CPUs."
    )


def _fits(sizes: Sequence[tuple[int, int]], workers: int, gpu: int, share: int, spare: int) -> bool:
    """Say whether actors fit on machines of (CPUs, GPUs) and leave `spare` on one of them however they are spread.

    CPUs, `share` and `spare` are hundredths of a CPU.
    """
    seats, filling = 0, 0
    for cpus, gpus in sizes:
        most = min(cpus // share, gpus) if gpu else cpus // share
        seats += most
        if cpus >= spare:
            taking = (cpus - spare) // share + 1  # as many actors leave less than the spare
            # A machine with too few GPUs for that always has the spare.
            filling += taking if taking <= most else workers + 1
    return workers <= seats and (spare == 0 or workers < filling)


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
    # Cut here: a task of Ray's that did it would need a CPU beside the actors.
    rows = ray.data.from_items([{"part": part} for part in missing], override_num_blocks=blocks)
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
    import ray
    import ray.data

    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        # Ray takes SIGTERM for itself; what the caller does at it, such as cleaning up, goes first.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
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
