"""The proving ground: is a change of the recipe worth more than the noise, in half an hour of one core?

    python -m lab.ablation --data cifar10 --seconds 750 --out runs/proving --only base --seeds 4    # the noise
    python -m lab.ablation --data cifar10 --seconds 750 --out runs/proving --only base,r1
    python -m lab.ablation --data cifar10 --seconds 750 --out runs/proving --vary wide generator.width=64
    python -m lab.ablation --data cifar10 --seconds 750 --out runs/proving --vary filtered filter.candidates=8192
    python -m lab.ablation --data cifar10 --seconds 750 --out runs/proving --vary surer matching.cross_entropy=0.1

Every generator gets as many steps as fit into a time of the processor: networks two thirds as wide as those of the
preset `best`, all classes, nine tenths of the training split. A change that makes steps dearer gets fewer of them:
its steps are timed beside those of the unchanged recipe in turns, so that a busy machine slows both. What is measured
on the hold-out: students by two recipes, on a stream of ten images per class and epoch, and `lab/image_measures.py`.
A row that trains stage 1 as `base` does, in as many steps, begins with that of `base` of the same seed.

Stop it at any time: the same command goes on from the newest checkpoint.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dim.config import DistillConfig
from dim.data.image_set import ImageSet
from dim.distillation.distill import describe_run, distill
from dim.export.run_files import read_run
from dim.presets import preset
from dim.runs.take_over import find_stage1
from dim.runtime.bundle_format.accepted_file import read_accepted
from dim.runtime.errors import BadValueError, DivergedError, RunError
from dim.runtime.storage.below import replace_file
from lab.image_measures import Judge, compare_images, draw_stream, pick_real, take_balanced, teach, train_judge
from lab.step_times import Costs, time_steps

PROVING: dict[str, Any] = {
    "generator.width": 32,
    "generator.max_width": 128,
    "discriminator.width": 32,
    "discriminator.max_width": 128,
    "stage1.adversarial.ema_halflife_kimg": 5.0,
    "stage2.adversarial.ema_halflife_kimg": 5.0,
    "pool.architectures": ("convnet3",),
    "pool.width": 64,
    "pool.ages": (100, 400, 1600),
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
    "deployment.refine_steps": 0,
    "filter.candidates": 0,
    "checkpoint_steps": 200,
    "grid_steps": 100_000,
}
"""What makes `best` a recipe for minutes of one core; fixed latents are judged elsewhere."""
RECIPES = ("condensation", "default")
"""The two recipes of students that differ most: steps of a constant rate, and one cycle."""
IPC, WIDTH, COMPARED_PER_CLASS = 10, 64, 500
TIMED_STEPS, ROUNDS = 32, 2
SAME_COST = 0.03
"""A change whose steps cost as much as before within this part is not timed again: it gets as many steps."""

Overrides = Mapping[str, Any]


def prove(
    data: ImageSet,
    variants: Mapping[str, tuple[str, Overrides]],
    *,
    out: Path,
    seconds: float,
    seeds: int,
    students: int,
    epochs: int,
    common: Overrides,
) -> None:
    """Distil, draw, compare and teach what has no row yet.

    Args:
        data: whose test split is the hold-out.
        variants: by name, what a row says and the fields that it changes.
        out: folder of runs, rows and `proving.json`.
        seconds: of the processor, for one generator.
        seeds: generators per variant; they are the outer loop.
        students: per generator and recipe.
        epochs: of a student.
        common: fields that all variants change alike.
    """
    common = {**PROVING, **common}
    setting = {"seconds": seconds, "epochs": epochs, "common": common, "fingerprint": data.fingerprint()}
    _refuse_another_setting(out / "setting.json", json.loads(json.dumps(setting)))
    judge = train_judge(data, out / "judge.safetensors")
    _write_real(data, judge, out / "real.json", students, epochs)
    for seed in range(seeds):
        for name, (words, own) in variants.items():
            path = out / "proved" / f"{name}-{seed}.json"
            if path.exists():
                continue
            overrides = {**common, **own, "seed": seed}
            steps = _fit_steps(data, name, overrides, common, out, seconds)
            print(f"seed {seed}: {name}, {steps[0]} + {steps[1]} steps", file=sys.stderr, flush=True)
            config = preset("best", data=data, overrides=overrides)
            config = replace(config, stage1=replace(config.stage1, steps=steps[0]))
            config = replace(config, stage2=replace(config.stage2, steps=steps[1]))
            row: dict[str, Any] = {"variant": name, "words": words, "changes": own, "seed": seed, "steps": steps}
            run = out / "runs" / f"{name}-{seed}"
            try:
                row["seconds"] = _distil(data, config, run, out / "runs" / f"base-{seed}")
            except DivergedError as error:
                row["failed"] = str(error)
            else:
                row |= _judge_run(data, judge, run, students, epochs)
            row["date"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            _write_json(path, row)


def _refuse_another_setting(path: Path, setting: Mapping[str, Any]) -> None:
    if not path.exists():
        _write_json(path, setting)
    elif (there := json.loads(path.read_text())) != setting:
        differing = [field for field in setting if there.get(field) != setting[field]]
        sys.exit(f"{path} was made with another {', '.join(differing)}: give another --out.")


def _write_real(data: ImageSet, judge: Judge, path: Path, students: int, epochs: int) -> None:
    """Teach by real images as many as a generator draws, and compare training with held-out images."""
    if path.exists():
        return
    accuracies: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    for student in range(students):
        images, labels = pick_real(data, IPC * epochs, student)
        for recipe in RECIPES:
            accuracies[recipe].append(
                teach(data, images, labels, recipe=recipe, ipc=IPC, epochs=epochs, width=WIDTH, seed=student)
            )
    _write_json(
        path,
        {"variant": "real", "words": "real images", "seed": 0, **_compare(data, judge, images, labels), **accuracies},
    )


def _judge_run(data: ImageSet, judge: Judge, path: Path, students: int, epochs: int) -> dict[str, Any]:
    """Draw a stream for every student; the first one is compared with held-out images as well."""
    run = read_run(path)
    shape = {"num_classes": len(run.classes), "per_class": IPC * epochs, "latent_dim": run.latent_dim}
    accepted = None if run.accepted is None else read_accepted(run.accepted, len(run.classes))
    found: dict[str, Any] = {recipe: [] for recipe in RECIPES}
    for student in range(students):
        images, labels = draw_stream(run.generator, run.latent_std, shape, seed=student, accepted=accepted)
        if not student:
            found |= _compare(data, judge, images, labels)
        for recipe in RECIPES:
            found[recipe].append(
                teach(data, images, labels, recipe=recipe, ipc=IPC, epochs=epochs, width=WIDTH, seed=student)
            )
    return found


def _compare(data: ImageSet, judge: Judge, images: Any, labels: Any) -> dict[str, float]:
    """Compare a stream's first images with held-out ones."""
    per_class = min(COMPARED_PER_CLASS, *(int((data.test_labels == k).sum()) for k in range(len(data.classes))))
    real, fake = (
        judge.look(*take_balanced(pixels, classes, per_class))
        for pixels, classes in ((data.test_images, data.test_labels.astype("int64")), (images, labels))
    )
    return compare_images(real, fake)


def _distil(data: ImageSet, config: DistillConfig, run: Path, base: Path) -> float:
    """Distil, or go on with it; returns the processor's seconds of all calls, without a stage 1 taken from `base`."""
    spent = run.with_suffix(".seconds")
    before, began, reports = float(spent.read_text()) if spent.exists() else 0.0, time.process_time(), 0
    spent.parent.mkdir(parents=True, exist_ok=True)

    def note(what: str, done: float, total: float | None, words: str) -> None:
        nonlocal reports
        reports += 1
        if not reports % 100:
            spent.write_text(f"{before + time.process_time() - began:.1f}\n")

    source = base if run != base and trains_the_same(base, config, data) else None
    distill(data, config, run, resume=True, from_stage1=source, device="cpu", say=_say, progress=note)
    total = before + time.process_time() - began
    spent.write_text(f"{total:.1f}\n")
    return round(total, 1)


def trains_the_same(base: Path, config: DistillConfig, data: ImageSet) -> bool:
    """Whether a run would train the very stage 1 that another has finished."""
    try:
        find_stage1(base, describe_run(config, data))
    except (BadValueError, RunError):
        return False
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fit_steps(
    data: ImageSet, name: str, overrides: Overrides, common: Overrides, out: Path, seconds: float
) -> tuple[int, int]:
    """How many steps of the stages fit into a time; timed once per variant and kept in `OUT/steps`."""
    path = out / "steps" / f"{name}.json"
    if not path.exists():
        base_path = out / "steps" / "base.json"
        if name != "base" and not base_path.exists():
            _fit_steps(data, "base", {**common, "seed": 0}, common, out, seconds)
        whole = preset("best", data=data, overrides=overrides)
        unchanged = preset("best", data=data, overrides={**common, "seed": overrides["seed"]})
        if name != "base" and costs_the_same(whole, unchanged):
            _write_json(path, json.loads(base_path.read_text()))
            return _fit_steps(data, name, overrides, common, out, seconds)
        own, base = [], []
        for _ in range(ROUNDS):
            own.append(time_steps(data, preset("best", data=data, overrides=overrides), out / "timing", TIMED_STEPS))
            if name != "base":
                base.append(time_steps(data, unchanged, out / "timing", TIMED_STEPS))
        costs = _medians(own)
        if name != "base":
            reference = json.loads(base_path.read_text())["costs"]
            costs = scale_costs(costs, _medians(base), reference)
        ratio = whole.stage2.steps / whole.stage1.steps
        _write_json(path, {"costs": costs, "steps": count_steps(costs, ratio, seconds)})
    stage1, stage2 = json.loads(path.read_text())["steps"]
    return stage1, stage2


def costs_the_same(own: DistillConfig, base: DistillConfig) -> bool:
    """Whether a change cannot make steps dearer: it is one of weights in stage 2, or of what follows the steps."""
    weights = {"weight": base.matching.weight, "cross_entropy": base.matching.cross_entropy}
    alike = replace(own, filter=base.filter, matching=replace(own.matching, **weights))
    return alike == base


def scale_costs(own: Costs, base: Costs, reference: Costs) -> Costs:
    """What steps of a variant cost when the unchanged recipe's cost what they did when they were first timed.

    Args:
        own, base: timed in turns.
        reference: of the unchanged recipe, from the first time.
    """
    scaled = {}
    for part, cost in own.items():
        relative = cost / base[part] if base[part] else 1.0
        scaled[part] = reference[part] * (1.0 if abs(relative - 1) < SAME_COST else relative)
    return scaled


def count_steps(costs: Costs, ratio: float, seconds: float) -> tuple[int, int]:
    """How many steps of stage 1, and `ratio` times as many of stage 2, fit into a time."""
    pool = costs["pool"] if ratio else 0.0
    stage1 = max(1, int(max(0.0, seconds - pool) / (costs["stage1"] + ratio * costs["stage2"])))
    return stage1, round(ratio * stage1)


def _medians(rounds: Sequence[Costs]) -> Costs:
    return {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path.parent, path.name, (json.dumps(value, indent=1) + "\n").encode())


COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any]], float], str]] = {
    "condensation": ("`condensation`", lambda row: statistics.fmean(row["condensation"]), ".2f"),
    "default": ("one cycle", lambda row: statistics.fmean(row["default"]), ".2f"),
    "energy_distance": ("energy distance", lambda row: float(row["energy_distance"]), ".4f"),
    "feature_distance": ("FD", lambda row: float(row["feature_distance"]), ".2f"),
    "precision": ("precision", lambda row: float(row["precision"]), ".3f"),
    "recall": ("recall", lambda row: float(row["recall"]), ".3f"),
    "coverage": ("coverage", lambda row: float(row["coverage"]), ".3f"),
    "recognised": ("recognised", lambda row: float(row["recognised"]), ".3f"),
    "certainty": ("certainty", lambda row: float(row["certainty"]), ".3f"),
}
"""Of the table: its title, the value of one generator, and how it is written."""


def proving_table(out: Path) -> list[str]:
    """Write what the folder holds as Markdown: means over generators, with the deviation of one generator.

    Args:
        out: of `prove`.
    """
    rows = [json.loads(path.read_text()) for path in sorted((out / "proved").glob("*.json"))]
    if (out / "real.json").exists():
        rows.insert(0, json.loads((out / "real.json").read_text()))
    titles = [title for title, _, _ in COLUMNS.values()]
    lines = [f"| variant | {' | '.join(titles)} | generators | steps |", "|---" + "|---:" * (len(titles) + 2) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        measured = [row for row in mine if "failed" not in row]
        if not measured:
            lines.append(f"| {mine[0]['words']} | {mine[0]['failed']} |")
            continue
        cells = []
        for _, value, form in COLUMNS.values():
            values = [value(row) for row in measured]
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):{form}}{spread}")
        steps = " + ".join(map(str, measured[0].get("steps", []))) or "-"
        lines.append(f"| {mine[0]['words']} | {' | '.join(cells)} | {len(measured)} of {len(mine)} | {steps} |")
    return lines
