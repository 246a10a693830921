"""Evaluation that can be trusted: fresh classifiers trained on generated images, tested once on real ones.

Every generated row stands beside its controls, trained in the same run by the same recipe with the same seeds: random
real images at equal images per class, real images at equal steps (the ceiling of `stream`), real images that take as
many bytes as the generator, and other bundles to compare with. One file per trained student, so a run that ends early
loses one student and goes on where it ended; a table can be made from what there is at any time.

    from dim.data.load import load_data
    from dim.evaluation.evaluate import evaluate

    results = evaluate(Path("mnist.dim"), load_data("mnist"), out=Path("eval/mnist"), ipcs=(10,), epochs=100)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dim.data.image_set import ImageSet
from dim.evaluation.cells import CellResult, read_result
from dim.evaluation.jobs import EvalProgress, run_cells
from dim.evaluation.plan import MODES, plan_cells
from dim.evaluation.run import Bench, check_fits, teacher_hash
from dim.evaluation.table import CHART_NAME, draw_chart, write_results
from dim.networks.classifiers import CLASSIFIER_NAMES, build_classifier
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.cores import usable_cores
from dim.runtime.engines.names import ENGINES
from dim.runtime.errors import BadValueError, DeviceError, DimError
from dim.students.recipes import Recipe, resolve_recipe
from dim.students.train import choose_precision
from dim.torch_engine.engine import TORCH

_MIN_STEPS_FOR_JOBS = 2000
"""Starting a process takes as long as some hundreds of steps."""
EVAL_PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"ipcs": (10, 50), "epochs": 100, "seeds": (0, 1, 2), "archs": ("convnet3",), "width": 32},
    "full": {"ipcs": (10, 50, 1), "epochs": 1000, "seeds": (0, 1, 2), "archs": ("convnet3", "resnet18")},
}
"""Arguments of `evaluate` by name: `quick` is a first answer in minutes on two cores for small grey images, a tenth of
the epochs with a narrow ConvNet-3; `full` is the protocol of the published tables."""


class TimeOverError(DimError):
    """A time limit ended an evaluation before its last student; `results` are those that it has."""

    def __init__(self, message: str, results: list[CellResult]) -> None:
        super().__init__(message)
        self.results = results


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A bundle under evaluation."""

    name: str
    folder: Path
    manifest: Manifest


def evaluate(
    bundle_path: Path | None,
    data: ImageSet,
    *,
    out: Path,
    modes: Sequence[str] = MODES,
    ipcs: Sequence[int] = (10, 50, 1),
    archs: Sequence[str] = ("convnet3",),
    width: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 1000,
    recipe: str | Recipe = "default",
    controls: bool = True,
    compare: Mapping[str, Path] | None = None,
    soft: bool = False,
    whole_epochs: int = 0,
    resume: bool = True,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    jobs: int | None = None,
    graphs: bool = True,
    engine: str = "auto",
    engine_device: str = "auto",
    engine_precision: str | None = None,
    time_limit_s: float | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[EvalProgress], None] = lambda event: None,
) -> list[CellResult]:
    """Train classifiers on what a bundle draws and on its controls, and test each once on the real test split.

    Args:
        bundle_path: the bundle's folder; None runs the controls alone.
        data: the dataset that the bundle was distilled from.
        out: folder of the results: `cells/*.json`, `results.json`, `accuracy.png`.
        modes: `fixed` (the set that `dim generate` writes) and `stream` (fresh images in every epoch).
        ipcs: images per class and epoch, in the order in which they are to be run.
        archs: classifiers, by the names of `dim.networks.classifiers`.
        width: of every classifier; None for the published ones.
        seeds: of the students, the images and their order; one student each. A bundle's fixed latents draw one set for
            all seeds, so the deviation of its `fixed` rows is the students' alone; real sets are drawn anew.
        epochs: of K * ipc images; the published protocol has 1,000, and both modes take the same number of steps.
        recipe: of every student alike: a name that `dim.students.train.resolve_recipe` knows, or a `Recipe` (see
            `dim.evaluation.recipes.choose_recipe`).
        controls: train on real images as well.
        compare: other bundles of the same dataset, by the name for the table.
        soft: run every row a second time with the soft labels of the bundle's `teacher.onnx`.
        whole_epochs: epochs over the whole training split, as a row of its own; 0 for none.
        resume: take finished students from `out`; False trains all of them again.
        device: `auto`, `cpu` or `gpu`, for the students.
        precision: `auto`, `fp32` or `bf16`, for the students.
        threads: CPU threads in all; None for every core this process may use.
        jobs: students trained side by side, sharing the threads; None for one per thread on a CPU, at most 8, where
            there is enough to do, and for one on a GPU. On two busy cores, two jobs of one thread made 16 steps per
            second together, one job of two threads 1; on an H100 under NVIDIA MPS, seven jobs took 75 s for 90 students
            of 32x32 colour images.
        graphs: train students on a GPU by CUDA graphs.
        engine, engine_device, engine_precision: as in `dim.runtime.open_bundle`, for the images; without a precision
            they are drawn in fp32. `torch` draws them by PyTorch on the students' device.
        time_limit_s: start no student after so many seconds; those in training are finished.
        say: gets a sentence about every choice made here.
        progress: gets the progress, from another thread where there are several jobs.

    Returns:
        The results in the order of the plan, those of earlier runs included.

    Raises:
        BadValueError: an argument is out of range, or the bundle is not of this dataset.
        BundleError: a bundle is missing or altered, or has no teacher where `soft` asks for one.
        DeviceError: the device is not to be had.
        OutputError: `out` cannot be written.
        TimeOverError: the time limit left students untrained; the results of the others are in `out`.
    """
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    _check_arguments(modes, ipcs, archs, seeds, epochs, whole_epochs, jobs, width, data)
    if engine not in ("auto", TORCH, *ENGINES):
        raise BadValueError(
            f"There is no engine {engine!r} for the images; there are auto, {TORCH}, {', '.join(ENGINES)}."
        )
    torch_device = _choose_device(device)
    student_precision = choose_precision(precision, torch_device)
    chosen = resolve_recipe(recipe, data.name)
    subjects = _read_subjects(bundle_path, compare or {}, data)
    for subject in subjects:
        if warning := other_origin(subject.folder, subject.manifest, data):
            say(f"Caution: {warning}")
    if soft and bundle_path is None:
        raise BadValueError("Soft labels come from a bundle's teacher, so they need a bundle.")
    teacher = teacher_hash(subjects[0].folder, subjects[0].manifest) if soft else ""
    drawn_in = engine_precision or "fp32"
    cells = plan_cells(
        data,
        [(subject.name, subject.manifest) for subject in subjects],
        modes=modes,
        ipcs=ipcs,
        archs=archs,
        width=width,
        seeds=seeds,
        epochs=epochs,
        recipe=chosen,
        controls=controls or bundle_path is None,
        teacher=teacher,
        whole_epochs=whole_epochs,
        precision=student_precision,
        engine="" if engine == "auto" else engine,
        engine_precision=drawn_in,
    )
    results: dict[int, CellResult] = {}
    if resume:
        found = {index: read_result(cell, out) for index, cell in enumerate(cells)}
        results = {index: result for index, result in found.items() if result is not None}
        if results:
            say(f"{len(results)} of {len(cells)} students were finished before, in {out}.")
    missing = [(index, cell) for index, cell in enumerate(cells) if index not in results]
    total_threads = threads or usable_cores()
    if jobs is None:
        steps = sum(cell.steps(len(data.classes), len(data.train_labels)) for _, cell in missing)
        jobs = 8 if torch_device.type == "cpu" and steps >= _MIN_STEPS_FOR_JOBS else 1
    jobs = max(1, min(jobs, total_threads, len(missing)))
    bench = Bench(
        data=data,
        bundles={subject.manifest.content_id: subject.folder for subject in subjects},
        device=str(torch_device),
        threads=total_threads // jobs,
        engine=engine,
        engine_device=engine_device,
        graphs=graphs,
    )
    if missing:
        say(f"Students: {chosen.name} recipe, {student_precision} on {torch_device}, {jobs} at a time.")
        _try_engines(bench, subjects, drawn_in, teacher, say)

    def report(index: int, step: int, steps: int) -> None:
        done = len(results)
        progress(
            EvalProgress(
                cell=cells[index], cell_index=index, num_cells=len(cells), done_cells=done, step=step, steps=steps
            )
        )

    def finished(index: int, result: CellResult) -> None:
        results[index] = result
        report(index, result.steps, result.steps)
        write_results(in_order(), data, out, finished=len(results) == len(cells))

    def in_order() -> list[CellResult]:
        return [results[index] for index in sorted(results)]

    run_cells(bench, missing, out, jobs, report, finished, deadline)
    left = len(cells) - len(results)
    rows = write_results(in_order(), data, out, finished=not left)
    if rows:
        draw_chart(rows, out / CHART_NAME)
    if left:
        raise TimeOverError(
            f"The time limit left {left} of {len(cells)} students untrained: the same command goes on.",
            in_order(),
        )
    return in_order()


def other_origin(folder: Path, manifest: Manifest, data: ImageSet) -> str:
    """Return a sentence if a bundle was distilled from other data than this, else nothing."""
    origin = manifest.distill_config.get("data")
    found = origin.get("fingerprint") if isinstance(origin, Mapping) else None
    if found in (None, data.fingerprint()):
        return ""
    return (
        f"{folder} was distilled from other data than this {data.name} (SHA-256 {str(found)[:12]}, here "
        f"{data.fingerprint()[:12]}), so these test images may be among those it was distilled from."
    )


def _read_subjects(bundle_path: Path | None, compare: Mapping[str, Path], data: ImageSet) -> list[_Subject]:
    named = ([("generated", bundle_path)] if bundle_path is not None else []) + list(compare.items())
    subjects: list[_Subject] = []
    for name, folder in named:
        manifest = load_manifest(Path(folder))
        check_fits(Path(folder), manifest, data)
        for other in subjects:
            if other.manifest.content_id == manifest.content_id:
                raise BadValueError(
                    f"The bundles {other.folder} and {folder} draw the same images (content id "
                    f"{manifest.content_id[:12]}): compare with another one."
                )
            if other.name == name:
                raise BadValueError(f"Two bundles are called '{name}': give the one to compare with another name.")
        subjects.append(_Subject(name=name, folder=Path(folder), manifest=manifest))
    return subjects


def _try_engines(
    bench: Bench, subjects: Sequence[_Subject], precision: str, teacher: str, say: Callable[[str], None]
) -> None:
    """Open every engine once: one that does not work shall say so now, not after an hour of students."""
    for subject in subjects:
        engine = bench.bundle(subject.manifest.content_id, precision).engine
        say(f"{subject.name}: {subject.folder}, drawn by {engine.name} {engine.precision} on the {engine.device}.")
    if teacher:
        bench.teacher(teacher)
    bench.close()


def _choose_device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "gpu"):
        raise BadValueError(f"device is '{device}'; it must be auto, cpu or gpu.")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"torch {torch.__version__} finds no GPU: use --device cpu, or install a CUDA build of torch."
        )
    return torch.device("cuda")


def _check_arguments(
    modes: Sequence[str],
    ipcs: Sequence[int],
    archs: Sequence[str],
    seeds: Sequence[int],
    epochs: int,
    whole_epochs: int,
    jobs: int | None,
    width: int | None,
    data: ImageSet,
) -> None:
    for name, values, allowed in [("mode", modes, MODES), ("classifier", archs, CLASSIFIER_NAMES)]:
        for value in values:
            if value not in allowed:
                raise BadValueError(f"There is no {name} '{value}'; there are {', '.join(allowed)}.")
    for name, numbers in [("modes", modes), ("ipcs", ipcs), ("archs", archs), ("seeds", seeds)]:
        if not numbers or len(set(numbers)) != len(numbers):
            raise BadValueError(f"{name} is {list(numbers)}; give at least one, and each once.")
    for name, values_, low in [
        ("ipc", ipcs, 1),
        ("seed", seeds, 0),
        ("epochs", [epochs], 1),
        ("whole_epochs", [whole_epochs], 0),
        ("jobs", [] if jobs is None else [jobs], 1),
    ]:
        for number in values_:
            if number < low:
                raise BadValueError(f"{name} is {number}; it must be at least {low}.")
    for arch in archs:
        build_classifier(arch, len(data.classes), data.channels, data.height, width)
