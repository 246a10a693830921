"""What only a GPU can show of the engines: whether they accept it, agree, repeat, and hand memory on."""

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.files import load_manifest, read_checked_file, write_bundle
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import DimError
from dim.runtime.gpu.driver import require_gpu
from dim.runtime.inspection.doctor import examine_machine
from dim.runtime.inspection.self_test import SelfTest, unpack_generator
from dim.runtime.inspection.verify import verify_engines
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest
from dim.runtime.trt import compile as trt_compile
from dim.runtime.trt.build import build_engines
from dim.runtime.trt.library import load_library
from dim.runtime.trt.sidecar import reason_engine_does_not_fit
from dim.runtime.trt.store import list_bundle_engines
from lab.gpu_steps import ROOT, Context, NotRunHereError, Step

FORMATS = {"tensorrt-rtx": "rtx", "tensorrt": "trt"}
GPU_ENGINES = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
"""What is least known comes first."""


def list_machine_steps() -> list[Step]:
    """What is here, and what of it works."""
    return [
        Step("driver", lambda context: asdict(context.driver), 0),
        *[Step(f"{engine} accepts this GPU", partial(accepts, engine=engine)) for engine in GPU_ENGINES],
        Step("torch on the GPU", measure_torch),
        Step("tensorrt-rtx: which targets open here", try_targets),
        Step("doctor", lambda context: examine_machine(context.driver).to_dict()),
    ]


def list_check_steps() -> list[Step]:
    """What is promised of engines: the same pixels again, memory without a copy, refusals with a reason."""
    steps = [Step("engines for other machines are refused", refusals, 1)]
    for engine in GPU_ENGINES:
        steps.append(Step(f"{engine}: the same pixels again", partial(repeats, engine=engine), 20))
        steps.append(Step(f"{engine}: DLPack to torch", partial(dlpack, engine=engine), 20))
    return [
        *steps,
        Step("generate --device gpu: a set, twice the same", make_sets, 20),
        Step("the tests of training that need a GPU", training_tests, 60),
    ]


def bundle_of(context: Context) -> Path:
    """A copy of the bundle to test engines on, without engines that others built: the newest one that there is."""
    made = sorted((context.work / "cifar10").glob("*.dim"))
    source = made[0] if made else ROOT / "bundles" / "cifar10.dim"
    manifest = load_manifest(source)
    copy = context.work / "engines" / f"{manifest.content_id[:12]}.dim"
    if not copy.exists():
        names = [name for name in manifest.files if not name.endswith((".engine", ".engine.json"))]
        files = {name: read_checked_file(source, manifest, name) for name in names}
        copy.parent.mkdir(exist_ok=True)
        write_bundle(copy, replace(manifest.description, accuracy=()), files)
    return copy


def measure_torch(context: Context) -> Any:
    """Rates of a matrix product and of a copy, which bound everything else; ceilings to compare with."""
    if find_spec("torch") is None:
        raise NotRunHereError("torch is not installed")
    import torch

    on_gpu = torch.cuda.is_available()
    if context.device == "gpu" and not on_gpu:
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA GPU")
    size, device = (8192, "cuda") if context.device == "gpu" else (256, "cpu")
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(size, size, 4, device=device)

    def seconds(action: Any, times: int = 10) -> float:
        for _ in range(3):
            action()
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            action()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    product, copy = seconds(lambda: a @ b), seconds(lambda: source.clone())
    return {
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "capability": torch.cuda.get_device_capability() if on_gpu else None,
        "bf16_tflop_per_s": round(2 * size**3 / product / 1e12, 1),
        "copy_gb_per_s": round(2 * source.nbytes / copy / 1e9, 1),
    }


def accepts(context: Context, engine: str) -> Any:
    """Draw a tiny bundle with a known answer; an engine that is missing, or not for this GPU, is not run."""
    with SelfTest() as test:
        return test.run(engine, context.driver, lambda message: print(f"            {message}", flush=True))


def try_targets(context: Context) -> Any:
    """Where TensorRT for RTX does not open here: what it says of a build for all listed GPUs, and for this one."""
    if context.rows("machine").get("tensorrt-rtx accepts this GPU", {}).get("status") == "ok":
        return "not needed"
    require_gpu("open an engine", context.driver)
    library, found = load_library("rtx"), dict[str, Any]()
    targets = library.module.ComputeCapability
    for name, members in {"all listed": [], "this GPU": [targets.CURRENT]}.items():
        try:
            with patch.object(trt_compile, "_find_targets", lambda library, wanted, members=members: members):
                options = trt_compile.BuildOptions(batch=(1, 2, 2))
                plan, _ = trt_compile.compile_plan(library, unpack_generator(), "fp32", options, gpu=None)
            runtime = library.module.Runtime(library.logger)
            opened = runtime.deserialize_cuda_engine(plan) is not None
            validity = str(runtime.get_engine_validity(plan)) if hasattr(runtime, "get_engine_validity") else None
            found[name] = {"opens": opened, "validity": validity, "said": library.take_messages()[:3]}
        except DimError as error:
            found[name] = str(error)
    return found


def build_and_verify(context: Context, engine: str) -> Any:
    """Build all precisions into the copy, then verify the engines at every batch of their profile."""
    context.require(engine)
    bundle, start, said = bundle_of(context), time.monotonic(), list[str]()
    paths = build_engines(bundle, format=FORMATS[engine], say=said.append)
    rows: list[dict[str, Any]] = []

    def add(subject: str, what: str, ok: bool, found: str, allowed: str) -> None:
        rows.append({"subject": subject, "check": what, "ok": ok, "found": found, "allowed": allowed})

    seconds = time.monotonic() - start
    verify_engines(bundle, load_manifest(bundle), add, driver=context.driver)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(rows)} checks failed: {wrong[0]}")
    sizes = {path.name: path.stat().st_size for path in paths}
    return {"build_and_check_s": round(seconds, 1), "engines": sizes, "said": said, "verify": rows}


def refusals(context: Context) -> Any:
    """An engine whose sidecar names another GPU, version or ONNX file is refused with its reason."""
    files, _ = list_bundle_engines(bundle_of(context), load_manifest(bundle_of(context)))
    if not files:
        raise NotRunHereError("no engine was built here")
    gpu, told = context.driver.gpus[0], {}
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


def inputs(bundle: Path, count: int) -> tuple[Any, Any]:
    """Latents and labels for a number of images."""
    manifest = load_manifest(bundle)
    rng = np.random.default_rng(7)
    latents = rng.standard_normal((count, manifest.latent_dim)).astype(np.float32)
    return latents, np.arange(count, dtype=np.int64) % manifest.num_classes


def draw(engine: Any, latents: Any, labels: Any) -> Any:
    """Images of any number of rows, one padded batch after the other."""
    starts = range(0, len(labels), engine.batch)
    return np.concatenate(
        [engine.run(latents[at : at + engine.batch], labels[at : at + engine.batch]) for at in starts]
    )


def repeats(context: Context, engine: str) -> Any:
    """Pixels depend neither on the split nor on the neighbours, nor on the session."""
    context.require(engine)
    hashes: dict[str, list[str]] = {}
    with Bundle(bundle_of(context)) as bundle:
        latents, labels = inputs(bundle.path, 700)
        for precision in bundle.manifest.precisions:
            for _ in range(2):
                opened: Any = open_engine(
                    bundle.path,
                    bundle.manifest,
                    EngineOptions(engine=engine, precision=precision),
                    driver=context.driver,
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


def dlpack(context: Context, engine: str) -> Any:
    """A GPU batch goes to torch without a copy, and holds the pixels that `run` returns."""
    context.require(engine)
    try:
        import torch
    except ImportError:
        raise NotRunHereError("torch is not installed") from None
    if not torch.cuda.is_available():
        raise NotRunHereError("torch sees no CUDA")
    with Bundle(bundle_of(context)) as bundle:
        opened: Any = open_engine(bundle.path, bundle.manifest, EngineOptions(engine=engine), driver=context.driver)
        latents, labels = inputs(bundle.path, 300)
        expected = draw(opened, latents, labels)
        for _ in range(20):  # memory is freed and taken again while torch still works on it
            images = torch.from_dlpack(opened.run_dlpack(latents, labels))  # type: ignore[attr-defined]
            total = images.to(torch.float32).sum()
            device = str(images.device)
            same = bool((images.cpu().numpy() == expected).all())
            if not same or abs(float(total) - float(expected.sum(dtype=np.float64))) > 1e-4 * float(total):
                raise RuntimeError(f"{engine} hands other pixels to torch than it returns")
            del images
        opened.close()
    return {"device": device, "images": len(labels)}


def make_sets(context: Context) -> Any:
    """`dim generate --device gpu` twice into two folders, and once in two shards."""
    context.works()
    hashes, folder = [], context.work / "sets"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("a", "b"):
        with open_bundle(bundle_of(context), device="gpu") as bundle:
            generate(bundle, SetRequest(ipc=50, format="npz"), folder / name)
            engine = f"{bundle.engine.name}, {bundle.engine.version}, {bundle.engine.reason}"
        files = sorted((folder / name).rglob("*.npz"))
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files])
    if hashes[0] != hashes[1]:
        raise RuntimeError(f"two sets of one plan differ: {hashes}")
    return {"engine": engine, "npz": hashes[0]}


def training_tests(context: Context) -> Any:
    """The tests of CUDA graphs that skip themselves without a GPU."""
    if find_spec("torch") is None or find_spec("pytest") is None:
        raise NotRunHereError("torch or pytest is not installed")
    import torch

    if not torch.cuda.is_available():
        raise NotRunHereError("torch sees no CUDA GPU")
    tests = ROOT / "tests" / "execution" / "test_cuda_graphs.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", "on_a_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    last = done.stdout.strip().rsplit("\n", 1)[-1]
    if done.returncode or "skipped" in last:
        raise RuntimeError(f"pytest: {last}")
    return last
