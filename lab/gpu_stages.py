"""The stages of `lab/gpu_run.py`: machine, CIFAR-10, engines, FashionMNIST, students, checks."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dim
from lab.gpu_checks import FORMATS, build_and_verify, bundle_of, list_check_steps, list_machine_steps
from lab.gpu_steps import Context, NotRunHereError, Stage, Step, UnfinishedError

PIECE_BYTES = 16 * 2**20 - 2**16
"""Of what is brought back, at most so much in one file."""
FLOOR_GFLOP_PER_S = 500e3
"""Arithmetic that a data-centre GPU sustains in half precision; the share of it is reported."""
PROBE_S = 25.0
"""So long, with the start, the speed of a step is looked at."""
KNOWN_STEPS = (13_500, 2500)
"""Of both stages, where no speed was seen: they took a data-centre GPU less than five minutes."""
AFTER_STEPS_S = 110.0
"""For the pool, the choices after training and the start, beside the steps of both stages."""
STAGE2_COST = 1.5
"""Time of a step of stage 2 by that of stage 1."""
SHORT_AGES = (100, 400, 1600)
"""Of the pool's classifiers, where the stages are shorter than the preset's."""
TINY: dict[str, Any] = {
    "generator.latent_dim": 8,
    "generator.width": 8,
    "generator.max_width": 8,
    "discriminator.width": 8,
    "discriminator.max_width": 8,
    "stage1.batch_size": 20,
    "stage2.batch_size": 20,
    "pool.architectures": ("convnet3", "mlp"),
    "pool.width": 8,
    "pool.batch_size": 16,
    "deployment.holdout": 0.2,
    "deployment.latent_stds": (1.0, 1.2),
    "deployment.fixed_latents": 2,
    "deployment.candidates": 4,
    "deployment.refine_steps": 1,
    "deployment.refine_learners": 1,
    "filter.candidates": 64,
    "log_steps": 2,
}
TINY_STEPS = {"stage1.steps": 40, "stage2.steps": 4, "pool.ages": (2, 4)}


def list_stages() -> list[Stage]:
    """Every stage in the order of its worth, with the most seconds that it may take."""
    return [
        Stage("machine", 40, list_machine_steps()),
        *_list_distillation("cifar10", 360),
        Stage("engines", 60, _list_engine_steps(), needs_s=20),
        *_list_distillation("fashion-mnist", 240),
        Stage("students", 300, [_student_step(name, ipc) for ipc in (10, 50) for name in ("cifar10", "fashion-mnist")]),
        Stage("checks", 180, list_check_steps(), needs_s=20),
    ]


def _list_distillation(name: str, limit_s: float) -> list[Stage]:
    speed = Step(f"speed of a step, {name}", partial(choose_steps, name=name, limit_s=limit_s), 0.3 * limit_s)
    both = Step(f"{name} by best, both stages", partial(distil, name=name), 20, resumable=True)
    return [
        Stage(name, limit_s, [speed, both], needs_s=30, needs=(f"origin/{name}.json",)),
        Stage(
            f"{name}-bundle",
            70,
            [Step(f"bundle of {name}", partial(export, name=name), 20, resumable=True)],
            needs_s=20,
            needs=(f"{name}/run/generator.safetensors",),
        ),
    ]


def load(context: Context, name: str) -> Any:
    """A dataset with the name and note of the bytes that came."""
    origin = json.loads((context.work / "origin" / f"{name}.json").read_text())
    data = dim.load_data(name, data_dir=origin.get("folder", context.work / "data"), say=print)
    return replace(data, name=origin["name"], note=origin["note"] or data.note)


class _EnoughError(BaseException):
    """The speed is known."""


def choose_steps(context: Context, name: str, limit_s: float) -> Any:
    """Train for some seconds, and choose as many steps of both stages as fit into what is left."""
    data, began = load(context, name), time.monotonic()
    whole = dim.preset("best", data=data)
    log_steps = 2 if context.tiny else 50
    times: list[float] = []

    def watch(what: str, done: float, total: float | None, note: str) -> None:
        if done % log_steps == 0:  # the losses of these steps have just been read, so the device has done them
            times.append(time.monotonic())
        if len(times) > (3 if context.tiny else 8):
            raise _EnoughError

    overrides = {**_sizes(context), "log_steps": log_steps, "checkpoint_steps": 10**6, "grid_steps": 10**6}
    fallback: dict[str, str] = {}

    def look() -> None:
        dim.distill(
            data,
            "best",
            context.work / name / f"probe-{time.time_ns()}",
            overrides=overrides | fallback,
            device=context.device,
            time_limit_s=PROBE_S * (20 if context.tiny else 1),
            say=print,
            progress=watch,
        )

    problems: list[str] = []
    for change in ({}, {"graphs": "off"}):
        fallback, times[:] = change, []
        try:
            look()
        except _EnoughError:
            break
        except Exception as error:  # the run itself is worth trying all the same
            problems.append(f"{change or 'as configured'}: {type(error).__name__}: {error}")
            print(problems[-1], flush=True)
        else:
            break
    if len(problems) > 1:
        fallback = {}
    spans = sorted(after - before for before, after in pairwise(times))
    step_s = spans[len(spans) // 2] / log_steps if spans else None
    left = min(limit_s, context.left()) - (time.monotonic() - began) - AFTER_STEPS_S
    steps = KNOWN_STEPS
    if step_s is not None:
        steps = fit_steps(whole.stage1.steps, whole.stage2.steps, step_s, max(left, 30.0))
    chosen: dict[str, Any] = {
        "stage1.steps": context.steps or steps[0],
        "stage2.steps": context.matching_steps or steps[1],
    }
    if chosen["stage1.steps"] < whole.stage1.steps:
        chosen["pool.ages"] = list(SHORT_AGES)
    chosen |= {"checkpoint_steps": 2500, "grid_steps": 2500, **fallback}  # each costs half a second
    if context.tiny:
        chosen = {**TINY_STEPS, "checkpoint_steps": 4, "grid_steps": 100}
    step_ms = None if step_s is None else round(step_s * 1e3, 2)
    return {
        "step_ms": step_ms,
        "overrides": chosen,
        "spans_s": [round(span, 4) for span in spans],
        "problems": problems,
    }


def fit_steps(steps: int, matching_steps: int, step_s: float, seconds: float) -> tuple[int, int]:
    """The steps of both stages, in their proportion, that fit into a time; never more than the preset's."""
    share = min(1.0, seconds / (step_s * (steps + STAGE2_COST * matching_steps)))
    return max(int(steps * share) // 100 * 100, 100), max(int(matching_steps * share) // 100 * 100, 100)


def _sizes(context: Context) -> dict[str, Any]:
    return dict(TINY) if context.tiny else {}


def distil(context: Context, name: str) -> Any:
    """Both stages, from the newest checkpoint if there is one; what can go on is packed for the way back."""
    row = context.rows(name).get(f"speed of a step, {name}", {})
    if row.get("status") != "ok":
        raise UnfinishedError("the speed of a step is not known")
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in row["found"]["overrides"].items()}
    began = time.monotonic()
    margin = 1.0 if context.tiny else 20.0
    result = dim.distill(
        load(context, name),
        "best",
        context.work / name / "run",
        overrides={**_sizes(context), **chosen},
        resume=True,
        device=context.device,
        time_limit_s=max(context.left() - margin, 1.0),
        say=print,
    )
    if name == "cifar10":
        pack_checkpoint(result.run_dir, context.work / "back")
        weights = sorted(result.run_dir.glob("generator*.safetensors")) + sorted(result.run_dir.glob("latents*"))
        if weights:
            pack({path.name: path for path in weights}, context.work / "back", f"{name}-weights")
    if not result.finished:
        raise UnfinishedError(f"stopped at a checkpoint after {time.monotonic() - began:.0f} s")
    return {"run": result.run_dir.name, "seconds_of_this_command": round(time.monotonic() - began, 1)}


def pack_checkpoint(run: Path, back: Path) -> list[Path]:
    """Pack a run with one checkpoint, from which it can go on: the end of stage 1 once it is finished, else the newest.

    Adam's first moments are left out where its first decay rate is 0: the next step writes them before it reads them.
    """
    import torch

    from dim.runs.checkpoint import CheckpointFolder, list_checkpoints, read_checkpoint
    from dim.runs.record import read_run_record

    records = list_checkpoints(run)
    if not records:
        return []
    finished = (run / "generator.safetensors").exists()
    wanted = max((r for r in records if "/stage1-" in r), default=records[-1]) if finished else records[-1]
    checkpoint, config = read_checkpoint(run, wanted), read_run_record(run).config
    tensors = dict(checkpoint.tensors)
    if getattr(config, checkpoint.stage).adversarial.beta1 == 0:
        tensors = {k: torch.zeros_like(v) if k.endswith(".exp_avg") else v for k, v in tensors.items()}
    slim = back.parent / f"{run.parent.name}-checkpoint"
    slim.mkdir(parents=True, exist_ok=True)
    folder = CheckpointFolder(slim, checkpoint.config_sha256)
    path = folder.save(
        checkpoint.stage,
        checkpoint.step,
        tensors,
        checkpoint.metrics_bytes,
        quiet_lines=checkpoint.quiet_lines,
        suspect=checkpoint.suspect,
    )
    members = {f"checkpoints/{file.name}": file for file in (path, path.with_suffix(".json"))}
    return pack(members, back, f"{run.parent.name}-checkpoint")


def pack(members: Mapping[str, Path], back: Path, name: str) -> list[Path]:
    """Pack files into `NAME.tar.gz`, in pieces where it is large: `cat NAME.tar.gz.* | tar xz` unpacks them."""
    back.mkdir(parents=True, exist_ok=True)
    whole = back / f"{name}.tmp"
    with tarfile.open(whole, "w:gz", compresslevel=1) as tar:
        for path, file in members.items():
            tar.add(file, path)
    content = whole.read_bytes()
    whole.unlink()
    for old in back.glob(f"{name}.tar.gz*"):
        old.unlink()
    pieces = [content[at : at + PIECE_BYTES] for at in range(0, len(content), PIECE_BYTES)]
    paths = [back / (f"{name}.tar.gz" + (f".{n}" if len(pieces) > 1 else "")) for n in range(1, len(pieces) + 1)]
    for target, piece in zip(paths, pieces, strict=True):
        target.write_bytes(piece)
    return paths


def export(context: Context, name: str) -> Any:
    """The bundle in fp32 and fp16."""
    work = context.work / name
    origin = json.loads((context.work / "origin" / f"{name}.json").read_text())
    path = dim.export_run(
        work / "run", work / f"{origin['name']}.dim", precisions=("fp32", "fp16"), overwrite=True, say=print
    )
    packed = pack({path.name: path}, context.work / "back", f"{name}-bundle")
    return {"bundle": path.name, "bytes": sum(file.stat().st_size for file in path.iterdir()), "packed": len(packed)}


def _list_engine_steps() -> list[Step]:
    """First what needs no compiler; then `torch.compile`, the most telling batch first."""
    steps = [Step(f"{engine}: built and verified", partial(build_and_verify, engine=engine), 15) for engine in FORMATS]
    steps.append(Step("engines and torch eager at 1, 256, 4096", partial(measure, batches=(1, 256, 4096)), 10))
    for batch in (256, 4096, 1):
        action = partial(measure, batches=(batch,), compiled=True)
        steps.append(Step(f"engines and torch.compile at {batch}", action, 25))
    published = partial(measure, batches=(256, 4096), compiled=True, published=True)
    return [*steps, Step("the published generator", published, 40)]


def measure(context: Context, batches: tuple[int, ...], compiled: bool = False, published: bool = False) -> Any:
    """Engines that work here and torch in turns, with the share of the floor that each reaches."""
    from benchmarks.engines import check_promises, export_untrained
    from dim.runtime.benchmark.benchmark import benchmark
    from dim.runtime.benchmark.options import BenchOptions
    from dim.runtime.bundle_format.files import load_manifest

    on_gpu = context.device == "gpu"
    bundle = bundle_of(context)
    if published:
        bundle = export_untrained("tiny" if context.tiny else "paper", context.work / "engines", ("fp32", "fp16"))
    try:
        engines = context.works() if on_gpu else ["onnxruntime-cpu"]
    except NotRunHereError:
        engines = []
    if context.tiny:
        batches, compiled = tuple(min(batch, 4) for batch in batches), False
    manifest = load_manifest(bundle)
    halves = ["fp16"] if compiled and "fp16" in manifest.precisions else None
    report = benchmark(
        bundle,
        BenchOptions(
            engines=engines,
            precisions=halves if engines else None,
            device=context.device,
            batches=batches,
            rounds=1 if context.tiny else 3,
            turn_s=0.001 if context.tiny else 0.1,
            find_best=False,
        ),
        rivals=_rivals(manifest.distill_config.get("generator"), context.device, compiled),
        driver=context.driver,
        say=print,
    )
    floor = FLOOR_GFLOP_PER_S / report.gflop_per_image
    shares = {
        f"{row.engine} {row.precision} at {row.batch}": float(f"{row.images_per_s / floor:.3g}")
        for row in report.results
    }
    found = {**report.to_dict(), "bundle": bundle.name, "floor_images_per_s": round(floor), "share_of_floor": shares}
    return found | ({"claims": check_promises(report, resizes=False)} if compiled and 256 in batches else {})


def _rivals(generator: Any, device: str, compiled: bool) -> list[Any]:
    """PyTorch's contenders: compiled in both half precisions, or eager in all three; none without torch."""
    from dim.runtime.benchmark.contenders import Contender

    if not generator:
        return []
    try:
        from dim.torch_engine.rivals import TorchRunner
    except ImportError as error:
        print(f"            without torch: {error}", flush=True)
        return []
    variant, precisions = ("torch-compile", ("fp16", "bf16")) if compiled else ("torch-eager", ("fp32", "fp16", "bf16"))
    return [
        Contender(
            engine=variant,
            precision=precision,
            device=device,
            open=partial(TorchRunner, generator, variant, precision, device, None),
        )
        for precision in precisions
    ]


def _student_step(name: str, ipc: int) -> Step:
    return Step(f"students of {name}, {ipc} per class", partial(train_students, name=name, ipc=ipc), 20, resumable=True)


def train_students(context: Context, name: str, ipc: int) -> Any:
    """One ConvNet-3 per row on generated and on real images, by the protocol of `dim eval`."""
    bundles = sorted((context.work / name).glob("*.dim"))
    if not bundles:
        raise UnfinishedError(f"there is no bundle of {name} yet")
    data, out = load(context, name), context.work / name / "students"
    protocol = dim.EvalProtocol(ipcs=(ipc,), seeds=(0,))
    if context.tiny:
        protocol = replace(protocol, epochs=1, width=8, modes=("stream",), controls=())
    execution = dim.Execution(
        device=context.device, torch_draws=True, time_limit_s=max(context.left() - 10.0, 1.0), jobs=1
    )
    result = dim.evaluate(bundles[0], data, protocol, execution, out=out, say=print)
    if not result.finished:
        raise UnfinishedError(f"{result.students_left} students are left")
    keys = ("source", "mode", "ipc", "arch", "accuracy_mean", "steps", "distinct_images")
    return [{key: dict(row)[key] for key in keys} for row in result.rows]
