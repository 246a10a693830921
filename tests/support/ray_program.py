"""Runs `generate` on Ray in a process of its own: Ray leaves sockets and children to the garbage collector.

python ray_program.py BUNDLE FOLDER  writes sets below FOLDER and puts what happened into told.json there.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dim.runtime.bundle import open_bundle
from dim.runtime.errors import DimError
from dim.runtime.sets.ray import generate_on_ray
from dim.runtime.sets.request import SetRequest

COUNTS = (6000, 3600, 1200)
PARQUET = {"per_class": (1500, 900, 300), "format": "parquet", "shard_images": 500}


def find_workers() -> list[int]:
    """Find Ray's processes that make shards by the names that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"ray::" in title and b"_make_shard" in title:
                found.append(int(entry.name))
    return found


def main(bundle_path: str, folder: str) -> None:
    """Do everything that the tests look at."""
    # A busy machine starts Ray's processes slowly.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    import ray

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=80 * 2**20
    )
    said: list[str] = []
    seen: list[tuple[float, float | None]] = []
    killed: list[int] = []

    def kill_one(what: str, done: float, total: float | None, note: str) -> None:
        seen.append((done, total))
        if done > 0 and not killed and (pids := find_workers()):
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    out = Path(folder)
    with open_bundle(bundle_path, engine="fake") as bundle:
        request = SetRequest(per_class=COUNTS)
        two = generate_on_ray(bundle, request, out / "two", num_workers=2, say=said.append, progress=kill_one)
        again = generate_on_ray(bundle, request, out / "two", say=said.append)
        mixed = generate_on_ray(bundle, SetRequest(**PARQUET), out / "mixed", num_workers=1)
        errors = []
        for count, overwrite in ((1, False), (5, True)):
            try:
                generate_on_ray(bundle, SetRequest(ipc=count), out / "foreign", overwrite=overwrite)
            except DimError as error:
                errors.append(f"{type(error).__name__}: {error}")
    # Not on stdout, where Ray speaks as well.
    (out / "told.json").write_text(
        json.dumps(
            {
                "said": said,
                "seen": seen,
                "killed": len(killed),
                "complete": [two.complete, again.complete, mixed.complete],
                "drawn": [two.images_drawn, again.images_drawn, mixed.images_drawn],
                "errors": errors,
            }
        )
    )
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
