#!/usr/bin/env python3
"""What every ingredient of the recipe is worth: the same small distillation again and again, one thing changed.

    python bench/ablation.py --size 16 --out runs/ablation        # MNIST at 16 pixels, two seeds: hours of one core
    python bench/ablation.py --out runs/ablation --only base,ema  # some rows
    python bench/ablation.py --out runs/ablation --table          # Markdown of what is there

Every variant is distilled with every seed, exported, and measured by fresh classifiers at ten images per class, `fixed`
and `stream`, beside the same classifiers on real images. The published recipe gets as much time as the unchanged one
takes (the processor's, or the wall's on a GPU), its networks and losses as published. The same command goes on where an
earlier one ended; seeds are the outer loop, so an early end leaves whole columns. `results.json` holds all that was
measured.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dim.config import DistillConfig
from dim.data import load_data
from dim.data_set import ImageSet
from dim.distill import choose_device, distill
from dim.distill_page import ablation_table
from dim.eval_cells import describe_machine
from dim.evaluate import evaluate
from dim.export.export_run import export_run
from dim.presets import preset
from dim.runtime.atomic import replace_file
from dim.runtime.errors import DivergedError, ParityError

BASE: dict[str, Any] = {
    "stage1.steps": 1200,
    "stage1.batch_size": 64,
    "pool.ages": (50, 200),
    "stage2.steps": 300,
    "stage2.batch_size": 64,
    "deployment.fixed_latents": 50,
    "checkpoint_steps": 100_000,
    "grid_steps": 100_000,
}
"""The preset `small`, shortened."""
GAME = ("stage1.adversarial", "stage2.adversarial")


def both(field: str, value: object) -> dict[str, object]:
    """An override of the game in both stages."""
    return {f"{stage}.{field}": value for stage in GAME}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("everything (the preset `small`, shortened)", {}),
    "generator": (
        "published generator: transposed convolutions",
        {"generator.kind": "paper", "generator.width": 64, "generator.max_width": 64},
    ),
    "conditioning": ("class conditioning in every batch norm too", {"generator.conditioning": "norm"}),
    "group": ("no deviation over groups in the discriminator", {"discriminator.group_size": 1}),
    "r1": ("no R1 penalty", both("r1_gamma", 0.0)),
    "shown": ("no augmentation of what the discriminator sees", both("augment", "")),
    "rates": ("generator's learning rate as high as the discriminator's", both("generator_lr", 5e-4)),
    "ema": ("no moving average", both("ema_halflife_kimg", 0.0)),
    "game": (
        "published critic and losses: WGAN-GP with class heads",
        {"discriminator.kind": "paper", "discriminator.width": 32, "discriminator.max_width": 32}
        | both("loss", "wgan-gp-ac"),
    ),
    "stage2": ("stage 1 alone", {"stage2.steps": 0}),
    "unmatched": ("stage 2 without matching", {"matching.loss": "none"}),
    "paper-loss": ("stage 2 with the published matching loss", {"matching.loss": "paper", "matching.weight": 0.01}),
    "logits": ("matching of logits only, no features", {"matching.feature_weight": 0.0}),
    "ages": ("pool of one age", {"pool.ages": (200,)}),
    "spread": ("latents spread as in training, no choice", {"deployment.latent_stds": ()}),
    "latents": ("random latents in fixed sets, no choice", {}),
    "paper": ("published recipe, equal time", {}),
}
"""What a row says, and what it changes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--size", type=int, help="side in pixels; the dataset's own if left out")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--only", help="variants, with commas")
    parser.add_argument("--seeds", type=int, default=2, help="generators per row")
    parser.add_argument("--students", type=int, default=3, help="per generator")
    parser.add_argument("--epochs", type=int, default=300, help="of a student: ten images per class each")
    parser.add_argument("--width", type=int, default=32, help="of a student")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="change every variant alike")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and measure nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        torch.set_num_threads(options.threads)
        measure(options, load_data(options.data, size=options.size))
    print("\n".join(ablation_table(json.loads((options.out / "results.json").read_text(encoding="utf-8")))))
    return 0


def measure(options: argparse.Namespace, data: ImageSet) -> None:
    """Distil and evaluate what has no result yet; rewrite `results.json` after each."""
    names = options.only.split(",") if options.only else list(VARIANTS)
    changed = {k: json.loads(v) for k, v in (text.split("=", 1) for text in options.set)}
    common = BASE | {k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()}
    students = {
        "out": options.out / "eval",
        "ipcs": (10,),
        "width": options.width,
        "seeds": range(options.students),
        "epochs": options.epochs,
        "threads": options.threads,
        "device": options.device,
        "jobs": 1,
    }
    controls = [asdict(result) for result in evaluate(None, data, **students)]
    for seed in range(options.seeds):
        for name in names:
            path = options.out / "rows" / f"{name}-{seed}.json"
            if path.exists():
                continue
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            row: dict[str, Any] = {"variant": name, "seed": seed}
            try:
                run, seconds = make(name, seed, data, common, options)
                bundle = export_run(run, name=f"{name}-{seed}", overwrite=True)
            except (DivergedError, ParityError) as error:
                row["failed"] = str(error)
            else:
                results = evaluate(bundle, data, controls=False, **students)
                row["seconds"] = round(seconds, 1)
                for mode in ("fixed", "stream"):
                    row[mode] = [round(r.accuracy, 4) for r in results if r.cell.mode == mode]
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(row).encode())
            write(options, data, controls, common)
    write(options, data, controls, common)


def make(
    name: str, seed: int, data: ImageSet, common: Mapping[str, Any], options: argparse.Namespace
) -> tuple[Path, float]:
    """Distil a variant.

    Returns:
        The run, and the seconds that its distillation took.
    """
    run = options.out / "runs" / f"{name}-{seed}"
    cost = run.with_suffix(".seconds")
    base = options.out / "runs" / f"base-{seed}"
    if name == "latents":
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run, ignore=shutil.ignore_patterns("latents.npz", "*.dim"))
        return run, float(base.with_suffix(".seconds").read_text())
    if cost.exists():
        return run, float(cost.read_text())
    if name == "paper":
        config = published(seed, data, float(base.with_suffix(".seconds").read_text()), options)
    else:
        config = preset(options.preset, data=data, overrides={**common, **VARIANTS[name][1], "seed": seed})
    shutil.rmtree(run, ignore_errors=True)
    seconds = timed(config, data, run, options.device)
    cost.write_text(str(seconds))
    return run, seconds


def timed(config: DistillConfig, data: ImageSet, run: Path, device: str) -> float:
    """Distil; return the seconds that it took, of the processor, or of the wall on a GPU."""
    clock = time.process_time if choose_device(device).type == "cpu" else time.perf_counter
    began = clock()
    distill(config, data, run, device=device, say=lambda line: print(line, file=sys.stderr))
    return clock() - began


def published(seed: int, data: ImageSet, budget_s: float, options: argparse.Namespace) -> DistillConfig:
    """The preset `paper`, its stages shortened alike until both fit into `budget_s` seconds."""
    full = preset("paper", data=data)
    kept = {"seed": seed, "checkpoint_steps": 100_000, "grid_steps": 100_000, "pool.epoch_steps": 1}

    def seconds(stage1: int, stage2: int) -> float:
        folder = options.out / "runs" / f"paper-{seed}-timing"
        shutil.rmtree(folder, ignore_errors=True)
        config = preset("paper", data=data, overrides={**kept, "stage1.steps": stage1, "stage2.steps": stage2})
        try:
            return timed(config, data, folder, options.device)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    start = seconds(1, 0)
    step1, step2 = (seconds(4, 0) - start) / 3, (seconds(1, 5) - start) / 5
    share = (budget_s - start) / (full.stage1.steps * step1 + full.stage2.steps * step2)
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
    options: argparse.Namespace, data: ImageSet, controls: Sequence[Mapping[str, Any]], common: Mapping[str, Any]
) -> None:
    """Join the rows of all variants into `results.json`."""
    rows = [json.loads(path.read_text()) for path in sorted((options.out / "rows").glob("*.json"))]
    report = {
        "data": data.name,
        "data_note": data.note,
        "fingerprint": data.fingerprint(),
        "image_px": data.height,
        "preset": options.preset,
        "changed": common,
        "student": {"arch": "convnet3", "width": options.width, "ipc": 10, "epochs": options.epochs},
        "variants": {name: words for name, (words, _) in VARIANTS.items()},
        "rows": rows,
        "real": {
            mode: [r["accuracy"] for r in controls if r["cell"]["mode"] == mode and r["cell"]["source"] == "real"]
            for mode in ("fixed", "stream")
        },
        "machine": describe_machine(choose_device(options.device).type),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    replace_file(options.out / "results.json", (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
