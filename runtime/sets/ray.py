"""`generate` on Ray: one task per shard, each the same as `generate(shard=(i, n))`.

The tasks share a plan, a journal and nothing else. One whose process dies is started again by Ray and finds in the
journal what is finished.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError, BundleError, DimError, MissingExtraError, OutputError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress
from dim.runtime.sets.claim import claim_set, clear_up, open_engine_for
from dim.runtime.sets.contents import examine_place
from dim.runtime.sets.generate import (
    GenerateSummary,
    Meter,
    generate,
    is_finished,
    prepare,
    say_what_seed_keeps,
    summarise,
)
from dim.runtime.sets.journal import list_noted_parts, read_set
from dim.runtime.sets.pipeline import MAX_ENCODERS
from dim.runtime.sets.request import SetRequest
from dim.runtime.storage.local_store import Store
from dim.runtime.storage.object_store import is_remote
from dim.runtime.storage.place import check_place, check_url, find_folder, open_store
from dim.runtime.storage.private_cache import cache_folder, fill_cached_folder

REPORT_S = 0.5
"""Seconds between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What every task gets of the cluster."""

    workers: int
    gpus: int
    """GPUs per task, 0 or 1."""
    cpus: float
    """CPUs per task, no more than one machine has."""

    @property
    def threads(self) -> int:
        """Threads of a CPU engine, and PNG files made at once."""
        return max(1, int(self.cpus))


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
        # A machine may have fewer cores than Ray was told.
        options = replace(self.options, threads=min(self.options.threads or threads, os.cpu_count() or 1))
        return Bundle(path, options, fixed_latents=self.fixed_latents)

    def _unpack(self) -> Path:
        path = cache_folder("bundles") / f"{self.manifest_sha256}.dim"
        if path.is_symlink() or not path.is_dir():
            # Two tasks of one machine may do this at once; both folders are the same.
            with fill_cached_folder(f"bundles/{path.name}") as create:
                for name, data in self.files.items():
                    with create(name) as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
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


def generate_on_ray(
    bundle: Bundle,
    request: SetRequest,
    out: str | Path,
    *,
    num_workers: int | None = None,
    overwrite: bool = False,
    check: bool = False,
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
) -> GenerateSummary:
    """Write a training set on Ray, on this machine or on the cluster of `RAY_ADDRESS`; the same bytes as `generate`.

    Args:
        bundle: the open bundle; its files travel to machines that do not see its folder.
        request: what the set is to hold; every worker chooses its number of encoders itself.
        out: a folder that every machine of the cluster shares, or a URL of an object store.
        num_workers: shards, each a task; by default one per GPU, or one per two CPUs where there is no GPU.
        progress: as `generate`, twice a second, with the bytes of the shards that are done.
        the rest: as `dim.runtime.sets.generate.generate`.

    Returns:
        what was done.

    Raises:
        as `generate`; MissingExtraError: Ray is not installed.
    """
    began = time.monotonic()
    check_workers(num_workers)
    request.check(bundle)
    say_what_seed_keeps(bundle, request, say)
    check_url(out)
    place = str(out) if is_remote(out) else str(find_folder(out).absolute())
    with show_progress(progress) as report, open_store(place) as store:
        meter = Meter(report)
        contents = examine_place(store, bundle, request, overwrite)
        if contents.same is not None and is_finished(store, contents.same, check):
            clear_up(store)
            say(f"The set in {store} is complete already.")
            return summarise(store, contents.same, (0, 1), meter, began)
        check_place(store)
        ray = _start_ray()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = share_cluster(nodes, bundle.engine_options.device, num_workers)
        say(
            f"Ray: {share.workers} worker{'s' * (share.workers != 1)} with "
            f"{f'{share.gpus} GPU' if share.gpus else 'no GPU'} and {share.cpus:g} CPUs each."
        )
        parcel = ray.put(pack_bundle(bundle))
        resources = {"num_gpus": share.gpus, "num_cpus": share.cpus}
        encoders = min(share.threads, MAX_ENCODERS)
        job = _Job(request=replace(request, encoders=encoders), out=place, threads=share.threads, check=check)
        with _unwrap_errors(ray):
            # First and alone: the machine that calls may have no GPU to choose the plan's engine by, and of several
            # workers that replace another set in a store without locks, one would remove what another has written.
            ray.get(ray.remote(**resources)(_begin).remote(parcel, job, overwrite))
            make = ray.remote(**resources)(_make_shard)
            tasks = [make.remote(parcel, job, (i, share.workers)) for i in range(share.workers)]
            _wait(ray, tasks, store, meter)
        found = read_set(store)
        if found is None:
            raise _not_shared(place)
        return summarise(store, found, (0, 1), meter, began)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every task is told."""

    request: SetRequest
    out: str
    threads: int
    check: bool


def _begin(parcel: BundleParcel, job: _Job, overwrite: bool) -> None:
    """Begin or resume the set with the engine of a worker, and draw nothing."""
    with parcel.open(job.threads) as bundle, open_store(job.out) as store:
        contents = examine_place(store, bundle, job.request, overwrite)
        with open_engine_for(bundle, contents.same, say_to_log) as engine:
            prepared = prepare(store, bundle, job.request, contents, engine, overwrite)
            claim_set(store, bundle, job.request, prepared.plan, overwrite)


def _make_shard(parcel: BundleParcel, job: _Job, shard: tuple[int, int]) -> GenerateSummary:
    """Make a shard of the set that was begun."""
    with open_store(job.out) as store:
        if read_set(store) is None:
            raise _not_shared(job.out)
    with parcel.open(job.threads) as bundle:
        return generate(bundle, job.request, job.out, shard=shard, check=job.check, progress=False)


def _wait(ray: Any, tasks: list[Any], store: Store, meter: Meter) -> None:
    """Wait for all shards, and report what the journal has in the meantime."""
    begun = read_set(store)
    if begun is None:
        raise _not_shared(str(store))
    plan, running = begun.plan, tasks
    meter.set_share(plan.images, plan.images_of(list_noted_parts(store)))
    try:
        while running:
            ended, running = ray.wait(running, timeout=REPORT_S)
            for summary in ray.get(ended):
                meter.bytes += summary.bytes_written
                meter.drawn += summary.images_drawn
            # Whoever makes the last part completes the set and removes the journal.
            meter.set_share(plan.images, plan.images_of(list_noted_parts(store)) if running else plan.images)
    finally:
        for task in running:
            ray.cancel(task)


def check_workers(num_workers: int | None) -> None:
    """Check what can be told of a run on Ray before Ray is started.

    Raises:
        BadValueError: fewer than one worker.
        MissingExtraError: Ray is not installed.
    """
    if num_workers is not None and num_workers < 1:
        raise BadValueError(f"`num_workers` is {num_workers}; it must be at least 1.")
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "generate on a cluster")


def share_cluster(nodes: Sequence[Mapping[str, float]], device: str, num_workers: int | None) -> Share:
    """Divide a cluster among tasks that are all alike.

    Args:
        nodes: the resources of every machine that is alive, "CPU" and "GPU", as `ray.nodes()` has them.
        device: "auto", "cpu" or "gpu".
        num_workers: tasks that are wanted, or None.

    Returns:
        one task per GPU where there are GPUs; the largest number of whole CPUs per task, or part of one, with which all
        tasks find a place at the same time. Ray itself needs no CPU of its own for plain tasks.

    Raises:
        BadValueError: more tasks than hundredths of a CPU, or GPUs wanted where there are none.
    """
    # Hundredths of a CPU, because Ray hands out fractions and floating point cannot add them up.
    machines = [(round(100 * node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    machines = [(cpus, gpus) for cpus, gpus in machines if cpus > 0]
    all_cpus, all_gpus = sum(cpus for cpus, _ in machines), sum(gpus for _, gpus in machines)
    if device == "gpu" and not all_gpus:
        raise BadValueError("The device gpu was asked for and Ray's cluster has no GPU on a machine with CPUs.")
    gpu = 1 if all_gpus and device != "cpu" else 0
    workers = min(num_workers or all_gpus, all_gpus) if gpu else num_workers or max(1, all_cpus // 200)

    largest = max((cpus for cpus, _ in machines), default=0) // 100 * 100
    for share in (*range(largest, 0, -100), *range(99, 0, -1)):
        seats = sum(min(cpus // share, gpus) if gpu else cpus // share for cpus, gpus in machines)
        if seats >= workers:
            return Share(workers=workers, gpus=gpu, cpus=share / 100)
    raise BadValueError(
        f"Ray's cluster, {all_cpus // 100:,} CPUs on {len(nodes):,} machine{'s' * (len(nodes) != 1)}, has no room for "
        f"{workers:,} worker{'s' * (workers != 1)}: ask for fewer, or give Ray more CPUs."
    )


def _start_ray() -> Any:
    """Start Ray here or join the cluster that is there, without its banners."""
    import ray

    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        # Ray takes SIGTERM for itself; what the caller does at it, such as cleaning up, goes first.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return ray


def _not_shared(place: str) -> OutputError:
    return OutputError(f"{place} is not the same place for every worker: name a shared folder or an object store.")


@contextlib.contextmanager
def _unwrap_errors(ray: Any) -> Iterator[None]:
    """Let an error that a worker explained arrive as itself, without Ray's wrapping."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        # Ray's wrapper is a DimError too where the cause is one, with the worker's traceback for a message.
        while cause is not None and (isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, DimError)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from None
        raise OutputError(f"Ray gave up: {str(error).strip().splitlines()[-1][:300]}") from error
