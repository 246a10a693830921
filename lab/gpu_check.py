#!/usr/bin/env python3
"""Run the GPU's part of the project and write lab/results/gpu-<GPU>.json; see lab/gpu_check.sh."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from dim.runtime.benchmark.benchmark import benchmark
from dim.runtime.benchmark.report import GPU_ENGINES as BEST_FIRST
from dim.runtime.benchmark.report import check_promises
from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import DeviceError, DimError, MissingExtraError
from dim.runtime.gpu.driver import Driver, find_driver
from dim.runtime.inspection.doctor import examine_machine
from dim.runtime.inspection.self_test import SelfTest
from dim.runtime.inspection.verify import verify_engines
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest
from dim.runtime.trt.build import build_engines
from dim.runtime.trt.sidecar import reason_engine_does_not_fit
from dim.runtime.trt.store import list_bundle_engines
from dim.version import __version__

LIMIT_S = 580
"""All steps together; one that may not end in time is not begun."""
PATIENCE_S = 12
"""So long after the limit a step that does not end is given up, with the process."""
GPU_ENGINES = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
"""What is least known comes first."""
FORMATS = {"tensorrt-rtx": "rtx", "tensorrt": "trt"}


class NotRunHereError(Exception):
    """The machine lacks what a step needs; it is listed as not run."""


class Step(NamedTuple):
    """One thing to find out."""

    name: str
    needs_s: float
    """The most seconds that it may take."""
    action: Callable[["Check"], Any]


@dataclass
class Check:
    """The run so far."""

    source: Path
    bundle: Path
    driver: Driver
    limit_s: float = LIMIT_S
    began: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    works: dict[str, str] = field(default_factory=dict)
    """Engine -> version, of those that drew the self test's images."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the others did not."""

    def run(self, step: Step) -> None:
        """Run one step; whatever happens becomes a row."""
        left = self.limit_s - (time.monotonic() - self.began)
        start = time.monotonic()
        if left < step.needs_s:
            reason = f"it may take {step.needs_s:.0f} s and {max(left, 0):.0f} s were left"
            row = {"step": step.name, "status": "not run", "reason": reason}
        else:
            row = {"step": step.name, **self._outcome(step)}
        row["seconds"] = round(time.monotonic() - start, 2)
        self.rows.append(row)
        print(f"{row['status']:>8}  {row['seconds']:7.1f} s  {step.name}  {row.get('reason', '')}", flush=True)

    def _outcome(self, step: Step) -> dict[str, Any]:
        try:
            return {"status": "ok", "found": step.action(self)}
        except NotRunHereError as error:
            return {"status": "not run", "reason": str(error)}
        except DimError as error:
            return {"status": "failed", "reason": str(error)}
        except Exception as error:  # one broken library must not hide what the others do
            return {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}

    def working(self) -> list[str]:
        """The GPU engines that passed their self test, the best first.

        Raises:
            NotRunHereError: there is none.
        """
        if not self.works:
            raise NotRunHereError("no GPU engine works here")
        return [engine for engine in BEST_FIRST if engine in self.works]

    def require(self, engine: str) -> None:
        """Go on only with an engine that works here."""
        if engine not in self.works:
            raise NotRunHereError(self.reasons.get(engine, "its self test was not run"))

    def write(self, steps: Sequence[Step], out: Path, why_not: str) -> dict[str, Any]:
        """Write what was found; steps without a row are listed as not run."""
        rows = list(self.rows)
        rows += [{"step": s.name, "status": "not run", "reason": why_not, "seconds": 0.0} for s in steps[len(rows) :]]
        report = {
            "gpu": self.driver.gpus[0].name,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "dim": __version__,
            "driver": asdict(self.driver),
            "bundle": self.source.name,
            "content_id": load_manifest(self.source).content_id,
            "seconds": round(time.monotonic() - self.began, 1),
            "steps": rows,
            "not_run": [row["step"] for row in rows if row["status"] == "not run"],
            "failed": [row["step"] for row in rows if row["status"] == "failed"],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(
            f"{out}: {len(rows)} steps, not run: {len(report['not_run'])}, failed: {len(report['failed'])}", flush=True
        )
        return report


def main() -> None:
    """Run all steps and write the results; exit code 1 if a step failed or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", help="a bundle; else the one that dim generate would use")
    parser.add_argument("--out", type=Path, help="where to write the results")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    options = parser.parse_args()
    driver = find_driver()
    if driver.problem is not None:
        sys.exit(f"There is nothing to check here, because {driver.problem}; nothing was written.")
    source, _ = find_bundle(options.bundle)
    slug = re.sub(r"[^a-z0-9]+", "-", driver.gpus[0].name.lower().replace("nvidia", "")).strip("-")
    out = options.out or Path("docs/results") / f"gpu-{slug}.json"
    with tempfile.TemporaryDirectory(prefix="dim-gpu-check-") as folder:
        bundle = copy_bundle(source, Path(folder))
        check = Check(source=source, bundle=bundle, driver=driver, limit_s=options.limit_s)
        steps = all_steps(Path(folder))
        watch = threading.Timer(options.limit_s + PATIENCE_S, give_up, (check, steps, out))
        watch.daemon = True
        watch.start()
        try:
            for step in steps:
                check.run(step)
        finally:
            watch.cancel()
            report = check.write(steps, out, "the run was interrupted")
    sys.exit(1 if report["failed"] else 0)


def give_up(check: Check, steps: Sequence[Step], out: Path) -> None:
    """Write what there is and end the process: a library that hangs can be stopped in no other way."""
    hanging = steps[len(check.rows)].name
    check.rows.append({"step": hanging, "status": "failed", "reason": "it did not end in time", "seconds": None})
    check.write(steps, out, "no time was left")
    os._exit(1)


def all_steps(folder: Path) -> list[Step]:
    """Every step in its order: what is least known first, then what is promised."""
    steps = [Step(f"{engine} accepts this GPU", 60, partial(accepts, engine=engine)) for engine in GPU_ENGINES]
    for engine, format in FORMATS.items():
        steps.append(Step(f"{engine}: built and verified", 150, partial(build, engine=engine, format=format)))
    steps += [
        Step("engines for other machines are refused", 1, refusals),
        Step("benchmark of the published generator", 200, partial(measure_published, folder=folder)),
        Step("benchmark at batch 256", 120, partial(measure, batches=(256,))),
    ]
    for engine in GPU_ENGINES:
        steps.append(Step(f"{engine}: the same pixels again", 30, partial(repeats, engine=engine)))
        steps.append(Step(f"{engine}: DLPack to torch", 20, partial(dlpack, engine=engine)))
    return [
        *steps,
        Step("generate --device gpu: a set, twice the same", 30, partial(make_sets, folder=folder)),
        Step("doctor", 30, examine),
        Step("benchmark at batch 1, 64, 1024", 150, partial(measure, batches=(1, 64, 1024))),
        Step("the tests of training that need a GPU", 180, training_tests),
    ]


def copy_bundle(source: Path, folder: Path) -> Path:
    """Copy a bundle without engines that others built, so that nothing is written into the source."""
    from dim.runtime.bundle_format.files import read_checked_file, write_bundle

    manifest = load_manifest(source)
    names = [name for name in manifest.files if not name.endswith((".engine", ".engine.json"))]
    files = {name: read_checked_file(source, manifest, name) for name in names}
    write_bundle(folder / "copy.dim", replace(manifest.description, accuracy=()), files)
    return folder / "copy.dim"


def accepts(check: Check, engine: str) -> Any:
    """Draw a tiny bundle with a known answer; an engine that is missing, or not for this GPU, is not run."""
    try:
        with SelfTest() as test:
            check.works[engine] = test.run(
                engine, check.driver, lambda message: print(f"          {message}", flush=True)
            )
    except (DeviceError, MissingExtraError) as error:
        check.reasons[engine] = str(error)
        raise NotRunHereError(str(error)) from None
    except Exception as error:
        check.reasons[engine] = f"its self test failed: {error}"
        raise
    return check.works[engine]


def examine(check: Check) -> Any:
    """Ask the doctor, whose answer goes with the results."""
    return examine_machine(check.driver).to_dict()


def build(check: Check, engine: str, format: str) -> Any:
    """Build all precisions into the copy, then verify the engines at every batch of their profile."""
    check.require(engine)
    start = time.monotonic()
    said: list[str] = []
    paths = build_engines(check.bundle, format=format, say=said.append)
    seconds = time.monotonic() - start
    rows: list[dict[str, Any]] = []

    def add(subject: str, what: str, ok: bool, found: str, allowed: str) -> None:
        rows.append({"subject": subject, "check": what, "ok": ok, "found": found, "allowed": allowed})

    verify_engines(check.bundle, load_manifest(check.bundle), add, driver=check.driver)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(rows)} checks failed: {wrong[0]}")
    sizes = {path.name: path.stat().st_size for path in paths}
    return {"build_and_check_s": round(seconds, 1), "engines": sizes, "said": said, "verify": rows}


def refusals(check: Check) -> Any:
    """An engine whose sidecar names another GPU, version or ONNX file is refused with its reason."""
    files, _ = list_bundle_engines(check.bundle, load_manifest(check.bundle))
    if not files:
        raise NotRunHereError("no engine was built here")
    gpu, told = check.driver.gpus[0], {}
    for file in files[:1]:
        for name, other in {
            "gpu": replace(file.sidecar, hardware="gpu", gpu="NVIDIA Other", compute_capabilities=((1, 0),)),
            "library": replace(file.sidecar, library_version="1.0.0.0"),
            "onnx": replace(file.sidecar, onnx_sha256="0" * 64),
        }.items():
            version = file.sidecar.library_version
            reason = reason_engine_does_not_fit(
                other, gpu=gpu, library_version=version, onnx_sha256=file.sidecar.onnx_sha256
            )
            if reason is None:
                raise RuntimeError(f"an engine of another {name} was not refused")
            told[name] = reason
    return told


def inputs(check: Check, count: int) -> tuple[Any, Any]:
    """Latents and labels for a number of images."""
    manifest = load_manifest(check.bundle)
    rng = np.random.default_rng(7)
    latents = rng.standard_normal((count, manifest.latent_dim)).astype(np.float32)
    return latents, np.arange(count, dtype=np.int64) % manifest.num_classes


def draw(engine: Any, latents: Any, labels: Any) -> Any:
    """Images of any number of rows, one padded batch after the other."""
    starts = range(0, len(labels), engine.batch)
    return np.concatenate(
        [engine.run(latents[at : at + engine.batch], labels[at : at + engine.batch]) for at in starts]
    )


def repeats(check: Check, engine: str) -> Any:
    """Pixels depend neither on the split nor on the neighbours, nor on the session."""
    check.require(engine)
    hashes: dict[str, list[str]] = {}
    with Bundle(check.bundle) as bundle:
        latents, labels = inputs(check, 700)
        for precision in bundle.manifest.precisions:
            for _ in range(2):
                opened: Any = open_engine(
                    bundle.path,
                    bundle.manifest,
                    EngineOptions(engine=engine, precision=precision),
                    driver=check.driver,
                )
                whole = draw(opened, latents, labels)
                turned = opened.run(latents[: opened.batch][::-1].copy(), labels[: opened.batch][::-1].copy())[::-1]
                few = opened.run(latents[:3], labels[:3])
                opened.close()
                if not np.array_equal(turned, whole[: len(turned)]) or not np.array_equal(few, whole[:3]):
                    raise RuntimeError(f"{engine} {precision} draws other pixels in another place of the batch")
                hashes.setdefault(precision, []).append(hashlib.sha256(whole.tobytes()).hexdigest()[:16])
    if any(len(set(each)) > 1 for each in hashes.values()):
        raise RuntimeError(f"{engine} draws other pixels in another session: {hashes}")
    return {precision: each[0] for precision, each in hashes.items()}


def dlpack(check: Check, engine: str) -> Any:
    """A GPU batch goes to torch without a copy, and holds the pixels that `run` returns."""
    check.require(engine)
    try:
        import torch
    except ImportError:
        raise NotRunHereError("torch is not installed") from None
    if not torch.cuda.is_available():
        raise NotRunHereError("torch sees no CUDA")
    with Bundle(check.bundle) as bundle:
        opened: Any = open_engine(bundle.path, bundle.manifest, EngineOptions(engine=engine), driver=check.driver)
        latents, labels = inputs(check, 300)
        expected = draw(opened, latents, labels)
        for _ in range(20):  # memory is freed and taken again while torch still works on it
            images = torch.from_dlpack(opened.run_dlpack(latents, labels))
            total = images.to(torch.float32).sum()
            device = str(images.device)
            same = bool((images.cpu().numpy() == expected).all())
            if not same or abs(float(total) - float(expected.sum(dtype=np.float64))) > 1e-4 * float(total):
                raise RuntimeError(f"{engine} hands other pixels to torch than it returns")
            del images
        opened.close()
    return {"device": device, "images": len(labels)}


def make_sets(check: Check, folder: Path) -> Any:
    """`dim generate --device gpu` twice into two folders, and once in two shards."""
    check.working()
    hashes = []
    for name in ("a", "b"):
        with open_bundle(check.bundle, device="gpu") as bundle:
            generate(bundle, SetRequest(ipc=50, format="npz"), folder / name)
            engine = f"{bundle.engine.name}, {bundle.engine.version}, {bundle.engine.reason}"
        files = sorted((folder / name).rglob("*.npz"))
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files])
    if hashes[0] != hashes[1]:
        raise RuntimeError(f"two sets of one plan differ: {hashes}")
    return {"engine": engine, "npz": hashes[0]}


def training_tests(check: Check) -> Any:
    """The tests of CUDA graphs that skip themselves without a GPU."""
    if find_spec("torch") is None or find_spec("pytest") is None:
        raise NotRunHereError("torch or pytest is not installed")
    import torch

    if not torch.cuda.is_available():
        raise NotRunHereError("torch sees no CUDA GPU")
    tests = Path(__file__).resolve().parent.parent / "tests" / "execution" / "test_cuda_graphs.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", "on_a_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    last = done.stdout.strip().rsplit("\n", 1)[-1]
    if done.returncode or "skipped" in last:
        raise RuntimeError(f"pytest: {last}")
    return last


def measure(check: Check, batches: tuple[int, ...]) -> Any:
    """Benchmark what works here against torch."""
    report = benchmark(
        check.bundle,
        engines=check.working(),
        device="gpu",
        batches=batches,
        rivals=rivals_of(check.bundle),
        rounds=3,
        turn_s=0.1,
        find_best=len(batches) > 1,
        driver=check.driver,
    )
    return {**report.to_dict(), "bundle": check.bundle.name}


def measure_published(check: Check, folder: Path) -> Any:
    """Benchmark the published generator in half precision: the one whose arithmetic the promises speak of."""
    best = check.working()[0]
    try:
        from dim.export.untrained import export_untrained
    except ImportError as error:
        raise NotRunHereError(f"{error.name} is not installed, and the generator is exported with torch") from None
    bundle = export_untrained("paper", folder, ("fp32", "fp16"))
    report = benchmark(
        bundle,
        engines=[best],
        precisions=["fp16"],
        device="gpu",
        batches=(256, 1024),
        rivals=[rival for rival in rivals_of(bundle) if rival.precision == "fp16"],
        rounds=3,
        turn_s=0.1,
        find_best=False,
        driver=check.driver,
    )
    return {**report.to_dict(), "bundle": bundle.name, "claims": check_promises(report, resizes=False)}


def rivals_of(bundle: Path) -> list[Any]:
    """PyTorch's contenders on the GPU; none without torch, and said."""
    try:
        from dim.torch_engine.rivals import torch_rivals

        return list(torch_rivals(load_manifest(bundle), "gpu"))
    except (ImportError, DimError) as error:
        print(f"          without torch: {error}", flush=True)
        return []


if __name__ == "__main__":
    main()
