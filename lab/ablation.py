#!/usr/bin/env python3
"""What every ingredient of the recipe is worth: the same small distillation again and again, one thing changed.

    python -m lab.ablation --size 16 --out runs/ablation        # MNIST at 16 pixels, two seeds: hours of one core
    python -m lab.ablation --out runs/ablation --holdout        # judged on images held out of the training split
    python -m lab.ablation --out runs/ablation --preset best --full --device gpu    # the preset's own lengths
    python -m lab.ablation --out runs/ablation --only base,ema  # some rows
    python -m lab.ablation --out runs/ablation --table          # Markdown of what is there

Every variant is distilled with every seed, exported, and measured by fresh classifiers at ten images per class, `fixed`
and `stream`, beside the same classifiers on real images. The published recipe gets as much time as the unchanged one
takes (the processor's, or the wall's on a GPU), its networks and losses as published. The same command goes on where an
earlier one ended; seeds are the outer loop, so an early end leaves whole columns. A variant that trains stage 1 and the
pool as "everything" does takes them over, which gives what a run from scratch would, bit for bit on a CPU; their
seconds count as if it had not. `results.json` holds all that was measured. With `--equal-seconds` it only works out how
long the published recipe may be, for `lab/reproduce.py`. With `--seconds` it is the proving ground, `lab/proving.py`.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dim.config import DistillConfig
from dim.data.image_set import ImageSet
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.distillation.distill import distill
from dim.distillation.stage2 import wants_pool
from dim.evaluation.choose_recipe import split_holdout
from dim.evaluation.context import describe_machine
from dim.evaluation.evaluate import evaluate
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.execution.device import autocast_dtype, choose_device
from dim.export.export_run import export_run
from dim.networks.published import PAPER_WIDTH
from dim.presets import preset
from dim.runtime.errors import DivergedError, ParityError
from dim.runtime.progress.show import Progress, ignore_progress
from dim.runtime.storage.below import replace_file
from lab.pages.distilling import ablation_table
from lab.proving import PROVING, prove, proving_table, trains_the_same

Clock = Callable[[], float]
"""Of the processor on a CPU, which other programs disturb least, else of the wall."""
QUIET: dict[str, Any] = {"checkpoint_steps": 100_000, "grid_steps": 100_000}
"""A variant starts anew after an interruption, and nobody looks at its grids."""
BASE: dict[str, Any] = {
    "stage1.steps": 1200,
    "stage1.batch_size": 64,
    "pool.ages": (50, 200),
    "stage2.steps": 300,
    "stage2.batch_size": 64,
    "deployment.fixed_latents": 50,
    "filter.candidates": 0,
} | QUIET
"""What shortens a preset for a CPU; `--full` leaves the preset as long as it is."""
LEAST_TIMED_S = 2.0
"""Where fewer steps than this takes are timed, the noise of a machine shows."""
GAME = ("stage1.adversarial", "stage2.adversarial")
SPLITS = {True: "hold-out", False: "test"}


@dataclass
class Cost:
    """Seconds of a distillation."""

    seconds: float
    stages: dict[str, float]
    """Of each stage that was run, as far as its steps report."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Cost":
        return cls(**json.loads(path.read_text()))


def both(field: str, value: object) -> dict[str, object]:
    """An override of the game in both stages."""
    return {f"{stage}.{field}": value for stage in GAME}


def list_variants(
    options: argparse.Namespace, data: ImageSet, common: Mapping[str, Any]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """List what a row says, and what it changes; rows that would change nothing of this preset are left out."""
    plain = preset(options.preset, data=data, overrides=common)
    # The published networks with as many channels as published only where the others are about as large.
    wide = plain.generator.max_width >= 0.9 * PAPER_WIDTH
    generator, discriminator = (PAPER_WIDTH, PAPER_WIDTH) if wide else (64, 32)
    youngest, oldest = plain.pool.ages[0], plain.pool.ages[-1]
    games = {"stage1": plain.stage1.adversarial, "stage2": plain.stage2.adversarial}
    game = games["stage1"]
    shifts = "crop" if "flip" in game.augment else "crop=0.07"
    listed: dict[str, tuple[str, dict[str, Any]]] = {
        "base": (f"everything (the preset `{options.preset}`{'' if options.full else ', shortened'})", {}),
        "generator": (
            "published generator: transposed convolutions"
            + ", class at the input alone" * (plain.generator.conditioning == "norm")
            + ", nothing mirrored" * plain.generator.mirrored,
            {"generator.kind": "paper", "generator.width": generator, "generator.max_width": generator}
            | {"generator.mirrored": False},
        ),
        "conditioning": ("class conditioning in every batch norm too", {"generator.conditioning": "norm"}),
        "unconditioned": ("class conditioning at the input alone", {"generator.conditioning": "input"}),
        "pixels": ("the discriminator sees pixels, not patches of four", {"discriminator.patch_px": 1}),
        "patches": ("the discriminator sees patches of four pixels", {"discriminator.patch_px": 2}),
        "group": ("no deviation over groups in the discriminator", {"discriminator.group_size": 1}),
        "r1": ("no R1 penalty", both("r1_gamma", 0.0)),
        "r1-light": ("R1 penalty a tenth as heavy", both("r1_gamma", game.r1_gamma / 10)),
        "shown": ("no augmentation of what the discriminator sees", both("augment", "")),
        "shown-color": ("the discriminator sees colour, crop and cutout", both("augment", "color_crop_cutout")),
        "shown-crop": ("the discriminator sees shifts alone", both("augment", shifts)),
        "unmirrored": (
            "the generator mirrors nothing, the discriminator sees what it did",
            {"generator.mirrored": False},
        ),
        "rates": (
            "generator's learning rate as high as the discriminator's",
            {f"{stage}.adversarial.generator_lr": adversarial.discriminator_lr for stage, adversarial in games.items()},
        ),
        "slow": (
            "stage 1 at the learning rates of stage 2, without decay",
            {
                "stage1.adversarial.generator_lr": games["stage2"].generator_lr,
                "stage1.adversarial.discriminator_lr": games["stage2"].discriminator_lr,
                "stage1.adversarial.final_lr_fraction": 1.0,
            },
        ),
        "one-step": ("one discriminator step per generator step", both("discriminator_steps", 1)),
        "two-steps": ("two discriminator steps per generator step", both("discriminator_steps", 2)),
        "ema": ("no moving average", both("ema_halflife_kimg", 0.0)),
        "game": (
            "published critic and losses: WGAN-GP with class heads",
            {
                "discriminator.kind": "paper",
                "discriminator.patch_px": 1,
                "discriminator.width": discriminator,
                "discriminator.max_width": discriminator,
            }
            | both("loss", "wgan-gp-ac"),
        ),
        "stage2": ("stage 1 alone", {"stage2.steps": 0}),
        "unmatched": ("stage 2 without matching", {"matching.loss": "none"}),
        "paper-loss": ("stage 2 with the published matching loss", {"matching.loss": "paper", "matching.weight": 0.01}),
        "unsure": ("stage 2 without the pool's cross-entropy", {"matching.cross_entropy": 0.0}),
        "logits": ("matching of logits only, no features", {"matching.feature_weight": 0.0}),
        "ages": ("pool of one age", {"pool.ages": (oldest,)}),
        "four-ages": (
            "pool of four ages, each four times as old as the one before",
            {"pool.ages": tuple(youngest * 4**age for age in range(4))},
        ),
        "spread": ("latents spread as in training, no choice", {"deployment.latent_stds": ()}),
        "unfiltered": ("every candidate drawn, those of uncertain label too", {"filter.candidates": 0}),
        "unrefined": ("latents of small fixed sets as chosen, not refined", {"deployment.refine_steps": 0}),
    }
    if plain.deployment.refine_steps:
        parts = {
            "learners": ("by judges none of which learns from the set", {"deployment.refine_learners": 0}),
            "one-draw": ("by one augmentation per judge", {"deployment.refine_draws": 1}),
            "unanswered": ("without the judges' cross-entropy", {"deployment.refine_cross_entropy": 0.0}),
        }
        listed |= {name: (f"latents of small fixed sets refined {how}", row) for name, (how, row) in parts.items()}
    if plain.generator.conditioning == "norm":
        neither = {"generator.conditioning": "input"} | both("ema_halflife_kimg", 0.0)
        listed["neither"] = ("class conditioning at the input alone and no moving average", neither)
    if plain.generator.mirrored:
        listed["shown-more"] = ("the discriminator sees shifts beside mirrored images", both("augment", "flip_crop"))
    kept = {
        name: row
        for name, row in listed.items()
        if name == "base" or preset(options.preset, data=data, overrides={**common, **row[1]}) != plain
    }
    if plain.deployment.fixed_latents:
        kept["latents"] = ("random latents in fixed sets, no choice", {})
    kept["paper"] = ("published recipe, equal time", {})
    if not wide:
        narrow = {"generator": generator, "discriminator": discriminator}
        kept["paper-narrow"] = (
            f"published recipe, {generator} and {discriminator} channels and our pool's width, equal time",
            {f"{network}.{field}": width for network, width in narrow.items() for field in ("width", "max_width")}
            | {"pool.width": plain.pool.width},
        )
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--data", default="mnist")
    parser.add_argument(
        "--seconds", type=float, help="the proving ground: seconds of the processor for each generator (lab/proving.py)"
    )
    parser.add_argument(
        "--vary",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "FIELD=JSON"),
        help="a row of your own for the proving ground, and what it changes",
    )
    parser.add_argument("--size", type=int, help="side in pixels; the dataset's own if left out")
    parser.add_argument("--preset", default="small", choices=("tiny", "small", "best"))
    parser.add_argument("--full", action="store_true", help="as long as the preset is, not shortened for a CPU")
    parser.add_argument(
        "--holdout", action="store_true", help="distil on nine tenths of the training split, measure on the rest of it"
    )
    parser.add_argument("--only", help="variants, with commas")
    parser.add_argument("--seeds", type=int, default=2, help="generators per row")
    parser.add_argument("--students", type=int, help="per generator; 3, on the proving ground 2")
    parser.add_argument("--epochs", type=int, help="of a student: ten images per class each; 300, or 500 there")
    parser.add_argument("--width", type=int, default=32, help="of a student")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="change every variant alike")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and measure nothing")
    parser.add_argument(
        "--equal-seconds",
        type=float,
        metavar="SECONDS",
        help="print the options with which `dim distill --preset paper` takes about so long here, and measure nothing",
    )
    options = parser.parse_args(arguments)
    proving = options.seconds is not None
    options.students = options.students or (2 if proving else 3)
    options.epochs = options.epochs or (500 if proving else 300)
    torch.set_num_threads(options.threads)
    if options.equal_seconds is not None:
        data = load_data(options.data, DataOptions(size=options.size))
        config = published(0, data, options.equal_seconds, options.out / "timing", options.device, time.perf_counter)
        print(
            f"--steps {config.stage1.steps} --matching-steps {config.stage2.steps} "
            f"--set pool.epoch_steps={config.pool.epoch_steps} --set compile=off"
        )
        return 0
    if proving:
        if not options.table:
            prove_variants(options)
        print("\n".join(proving_table(options.out)))
        return 0
    if not options.table:
        measure(options, load(options))
    print("\n".join(ablation_table(json.loads((options.out / "results.json").read_text(encoding="utf-8")))))
    return 0


def load(options: argparse.Namespace) -> ImageSet:
    """Load the dataset; with `--holdout`, the test split is never read, a tenth of the training split replaces it."""
    data = load_data(options.data, DataOptions(size=options.size))
    # The name decides which augmentation suits the images, so it stays the dataset's.
    return replace(split_holdout(data), name=data.name) if options.holdout else data


def parse_changes(entries: Sequence[str]) -> dict[str, Any]:
    """Read `FIELD=JSON` entries."""
    changed = {k: json.loads(v) for k, v in (text.split("=", 1) for text in entries)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()}


def choose_names(options: argparse.Namespace, variants: Mapping[str, Any], others: Sequence[str] = ()) -> list[str]:
    """Read `--only`; without it, `others` if there are any, else every row."""
    names = options.only.split(",") if options.only else list(others or variants)
    for name in names:
        if name not in variants:
            sys.exit(f"--only names {name!r}; the rows of this preset are {', '.join(variants)}.")
    return names


def prove_variants(options: argparse.Namespace) -> None:
    """Send rows to the proving ground: those of `--only`, and those that `--vary` adds."""
    options.preset, options.full, options.holdout = "best", False, True
    data, common = load(options), parse_changes(options.set)
    variants = list_variants(options, data, {**PROVING, **common})
    unfit = {"paper", "paper-narrow"}  # their own networks and lengths
    variants = {name: row for name, row in variants.items() if name not in unfit}
    for name, *entries in options.vary:
        variants[name] = (f"`{'`, `'.join(entries)}`", parse_changes(entries))
    names = choose_names(options, variants, [name for name, *_ in options.vary])
    prove(
        data,
        {name: variants[name] for name in names},
        out=options.out,
        seconds=options.seconds,
        seeds=options.seeds,
        students=options.students,
        epochs=options.epochs,
        common=common,
    )


def measure(options: argparse.Namespace, data: ImageSet) -> None:
    """Distil and evaluate what has no result yet; rewrite `results.json` after each."""
    common = (QUIET if options.full else BASE) | parse_changes(options.set)
    variants = list_variants(options, data, common)
    names = choose_names(options, variants)
    refuse_another_setting(options, data, common)
    protocol = EvalProtocol(
        ipcs=(10,), width=options.width, seeds=tuple(range(options.students)), epochs=options.epochs
    )
    execution = Execution(device=options.device, threads=options.threads, jobs=1)
    out = options.out / "eval"
    controls = [asdict(result) for result in evaluate({}, data, protocol, execution, out=out).results]
    for seed in range(options.seeds):
        for name in names:
            path = options.out / "rows" / f"{name}-{seed}.json"
            if path.exists():
                continue
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            row: dict[str, Any] = {"variant": name, "seed": seed} | where(options)
            try:
                run, seconds = make(name, seed, data, variants[name][1], common, options)
                bundle = export_run(run, name=f"{name}-{seed}", overwrite=True)
            except (DivergedError, ParityError) as error:
                row["failed"] = str(error)
            else:
                alone = replace(protocol, controls=())
                results = evaluate(bundle, data, alone, execution, out=out).results
                row["seconds"] = round(seconds, 1)
                for mode in ("fixed", "stream"):
                    row[mode] = [round(r.accuracy, 4) for r in results if r.cell.mode == mode]
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path.parent, path.name, json.dumps(row).encode())
            write(options, data, controls, common, variants)
    write(options, data, controls, common, variants)


def refuse_another_setting(options: argparse.Namespace, data: ImageSet, common: Mapping[str, Any]) -> None:
    """Stop where the folder holds rows of another dataset, split, preset or student: one table must not mix them."""
    path = options.out / "results.json"
    if not path.exists():
        return
    there = {"split": SPLITS[False]} | json.loads(path.read_text(encoding="utf-8"))
    for field, value in json.loads(json.dumps(setting(options, data, common))).items():
        if there[field] != value:
            sys.exit(f"{path} was measured with {field} {there[field]!r}, not {value!r}: give another --out.")


def setting(options: argparse.Namespace, data: ImageSet, common: Mapping[str, Any]) -> dict[str, Any]:
    """What all rows of a table have in common."""
    return {
        "fingerprint": data.fingerprint(),
        "split": SPLITS[options.holdout],
        "preset": options.preset,
        "changed": common,
        "student": {"arch": "convnet3", "width": options.width, "ipc": 10, "epochs": options.epochs},
    }


def where(options: argparse.Namespace) -> dict[str, str]:
    """Say on what and when something is measured."""
    device = choose_device(options.device)
    return {
        "machine": f"{describe_machine(device.type)}, {'bf16' if autocast_dtype('auto', device) else 'fp32'}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def make(
    name: str,
    seed: int,
    data: ImageSet,
    own: Mapping[str, Any],
    common: Mapping[str, Any],
    options: argparse.Namespace,
) -> tuple[Path, float]:
    """Distil a variant.

    Args:
        name: of the variant.
        seed: of the distillation.
        data: what is distilled.
        own: what this variant changes.
        common: what all of them change; the published recipe has none of it.
        options: of the command line.

    Returns:
        The run, and the seconds that its distillation took.
    """
    run = options.out / "runs" / f"{name}-{seed}"
    cost_path = run.with_suffix(".seconds")
    base = options.out / "runs" / f"base-{seed}"
    if name == "latents":
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run, ignore=shutil.ignore_patterns("latents.npz", "*.dim"))
        return run, Cost.load(base.with_suffix(".seconds")).seconds
    if cost_path.exists():
        return run, Cost.load(cost_path).seconds
    clock = time.process_time if choose_device(options.device).type == "cpu" else time.perf_counter
    source = None
    if name in ("paper", "paper-narrow"):
        budget_s = Cost.load(base.with_suffix(".seconds")).seconds
        timing = options.out / "runs" / f"{name}-{seed}-timing"
        config = published(seed, data, budget_s, timing, options.device, clock, own)
    else:
        config = preset(options.preset, data=data, overrides={**common, **own, "seed": seed})
        timed_base = name != "base" and base.with_suffix(".seconds").exists()
        source = base if timed_base and trains_the_same(base, config, data) else None
    shutil.rmtree(run, ignore_errors=True)
    cost = timed(config, data, run, options.device, clock, from_stage1=source)
    if source is not None:
        spent = Cost.load(base.with_suffix(".seconds")).stages
        shared = ("stage1", "pool") if wants_pool(config) else ("stage1",)
        cost.seconds += sum(spent.get(stage, 0.0) for stage in shared if stage not in cost.stages)
    cost.save(cost_path)
    return run, cost.seconds


def timed(
    config: DistillConfig,
    data: ImageSet,
    run: Path,
    device: str,
    clock: Clock,
    progress: Progress = ignore_progress,
    from_stage1: Path | None = None,
) -> Cost:
    """Distil; return what it took."""
    cost = Cost(0.0, {})
    began = last = clock()

    def note(what: str, done: float, total: float | None, note: str) -> None:
        nonlocal last
        now = clock()
        cost.stages[what] = cost.stages.get(what, 0.0) + now - last
        last = now
        progress(what, done, total, note)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    distill(data, config, run, device=device, from_stage1=from_stage1, say=say, progress=note)
    cost.seconds = clock() - began
    return cost


def published(
    seed: int,
    data: ImageSet,
    budget_s: float,
    timing: Path,
    device: str,
    clock: Clock,
    own: Mapping[str, Any] | None = None,
) -> DistillConfig:
    """The preset `paper`, its stages shortened alike until both fit into a time.

    It is not compiled, as published, so that steps take as long in the run as they did when they were timed.

    Args:
        seed: of the distillation.
        data: what it is to distil.
        budget_s: seconds that it may take.
        timing: a folder for the few steps that are timed, removed afterwards.
        device: `auto`, `cpu` or `gpu`.
        clock: on which the budget was measured.
        own: fields to change.
    """
    full = preset("paper", data=data)
    kept = {"seed": seed, "compile": "off"} | QUIET | dict(own or {})

    def timed_steps(stage: str, arch: str, count: int = 1) -> tuple[float, float]:
        """Seconds per step of a stage, and of all the rest of a run, from four times `count` steps."""
        shutil.rmtree(timing, ignore_errors=True)
        alone = {f"{name}.steps": 4 * count if name == stage else 0 for name in ("stage1", "stage2")}
        # One classifier for all steps: in the run itself a new one comes once per epoch.
        pool = {"pool.architectures": (arch,), "pool.epoch_steps": 4 * count}
        config = preset("paper", data=data, overrides=kept | alone | pool | {"log_steps": count})
        marks: list[float] = []

        def mark(what: str, done: float, total: float | None, note: str) -> None:
            if what == stage and done % count == 0:  # the losses have been read, so the device has done its work
                marks.append(clock())

        try:
            total = timed(config, data, timing, device, clock, mark).seconds
        finally:
            shutil.rmtree(timing, ignore_errors=True)
        # The first quarter pays for what a process does once.
        step = (marks[-1] - marks[0]) / (3 * count)
        if marks[-1] - marks[0] < LEAST_TIMED_S and count < 512:
            return timed_steps(stage, arch, 8 * count)
        return step, total - (marks[-1] - marks[0]) - step * count

    archs = full.pool.architectures
    step1, start = timed_steps("stage1", archs[0])
    step2 = sum(timed_steps("stage2", arch)[0] for arch in archs) / len(archs)
    share = max(0.0, budget_s - start) / (full.stage1.steps * step1 + full.stage2.steps * step2)
    # A classifier per epoch, as many epochs as published, each as much shorter as the stages.
    return preset(
        "paper",
        data=data,
        overrides=kept
        | {
            "stage1.steps": max(1, round(share * full.stage1.steps)),
            "stage2.steps": max(1, round(share * full.stage2.steps)),
            "pool.epoch_steps": max(1, round(share * full.pool.epoch_steps)),
        },
    )


def write(
    options: argparse.Namespace,
    data: ImageSet,
    controls: Sequence[Mapping[str, Any]],
    common: Mapping[str, Any],
    variants: Mapping[str, tuple[str, dict[str, Any]]],
) -> None:
    """Join the rows of all variants into `results.json`."""
    rows = [json.loads(path.read_text()) for path in sorted((options.out / "rows").glob("*.json"))]
    report = {
        "data": data.name,
        "data_note": data.note,
        **setting(options, data, common),
        "image_px": data.height,
        "variants": {name: words for name, (words, _) in variants.items()},
        "rows": rows,
        "real": {
            mode: [r["accuracy"] for r in controls if r["cell"]["mode"] == mode and r["cell"]["source"] == "real"]
            for mode in ("fixed", "stream")
        },
        "threads": options.threads,
        "torch": torch.__version__,
    } | where(options)
    replace_file(options.out, "results.json", (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
