#!/usr/bin/env python3
"""How fast dim distils, against the published recipe at equal network sizes, in one interleaved run.

    python -m lab.distill_speed                        # the networks of the preset small, 28x28 grey
    python -m lab.distill_speed --preset paper         # the published pair, 32x32 colour; heavy on a CPU
    python -m lab.distill_speed --check                # exit code 1 if a promised ratio is missed
    python -m lab.distill_speed --graphs off  # on a GPU: our steps started kernel by kernel, as the recipe's are

Both sides get the same generator, the same convolutions in the discriminator, the same classifiers, the same batch, and
images from memory; `published_recipe.py` beside this file is the other side: once as one would write it down, once with
dim's memory layout and fused optimisers. Pixels and weights are random, because
speed does not depend on them. An image is a real image that a generator step consumes; a step of stage 2 is the mean
over the pool's architectures. Ours pays for its kept pool as well: each architecture is trained once, to its last age,
and that time is spread over the images of the stage, so stage 2 has a row for every length of the stage.

Each round times every kind of step on both sides in turn; figures are medians over rounds, ratios are taken within a
round. On a GPU our steps are CUDA graphs, as they are when dim distils, unless --graphs says otherwise; what recording
those of stage 2 takes is spread like the pool. There are two clocks: the processor time of this process, which other
programs disturb least, and the wall's. On a GPU only the wall's means something.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dim.config import DistillConfig
from dim.evaluation.context import describe_machine
from dim.execution.allocator import keep_freed_memory
from dim.execution.cuda_graphs import use_own_stream
from dim.execution.device import choose_device
from dim.presets import PRESETS, preset
from lab.distill_sides import NUM_CLASSES, RIVALS, Seconds, Turn, measure, plus
from lab.published_recipe import SGD_STEPS

PUBLISHED_IMAGES = 78_000 * 64
"""Stage 2 as published: 100 epochs of CIFAR-10 at batch 64."""
LEAST = {("fp32", "fp32"): 4.0, ("bf16", "fp32"): 6.0}
"""Promised ratios in stage 2, by our precision and the recipe's."""


def configure(
    name: str,
    shape: dict[str, int],
    batch: int,
    architectures: Sequence[str] | None,
    graphs: str = "auto",
) -> tuple[DistillConfig, dict[str, int]]:
    """What to time.

    Args:
        name: a preset; `paper` stands for its networks and its losses, with the kept pool on our side.
        shape: `num_classes`, `image_px` and `channels`.
        batch: of every loop on both sides.
        architectures: of the pool; None takes the preset's.
        graphs: `auto` or `off`: whether our steps are CUDA graphs where there is a GPU; the recipe's are not.

    Returns:
        The configuration, and the real images that pass in stage 2, by the name of its length.
    """
    data = SimpleNamespace(
        name=name,
        classes=tuple(map(str, range(NUM_CLASSES))),
        class_counts=(5000,) * NUM_CLASSES,
        height=shape["image_px"],
        channels=shape["channels"],
    )
    plain = preset(name, data=data)
    lengths = {"stage 2 as long as published": PUBLISHED_IMAGES}
    overrides: dict[str, Any] = {"stage1.batch_size": batch, "stage2.batch_size": batch, "pool.batch_size": batch}
    overrides |= {"compile": "off", "graphs": graphs}
    if name == "paper":
        overrides |= {"pool.kind": "kept", "matching.loss": "distribution"}
    else:
        lengths = {f"stage 2 of {name}": plain.stage2.steps * plain.stage2.batch_size} | lengths
    if architectures:
        overrides["pool.architectures"] = tuple(architectures)
    return preset(name, data=data, overrides=overrides), lengths


def summarise(turns: dict[tuple[str, str], list[Turn]], batch: int, stages: dict[str, int]) -> dict[str, Any]:
    """Rows of speeds, and ratios between the sides.

    Args:
        turns: of `measure`.
        batch: real images per step.
        stages: names of lengths of stage 2, and the real images that pass in each.

    Returns:
        `rows` and `ratios`, ready for JSON.
    """

    def seconds(turn: Turn, what: str) -> Seconds:
        if what == "stage 1":
            return turn.stage1_step
        return plus(turn.stage2_step, turn.pool, batch / stages[what])

    rows, ratios = [], []
    for what in ("stage 1", *stages):
        for (side, precision), taken in turns.items():
            cpu, wall = (statistics.median(seconds(t, what)[clock] for t in taken) for clock in (0, 1))
            rows.append(
                {
                    "what": what,
                    "side": side,
                    "precision": precision,
                    "step_ms_cpu": cpu * 1e3,
                    "step_ms_wall": wall * 1e3,
                    "images_per_s_cpu": batch / cpu,
                    "images_per_s_wall": batch / wall,
                    "pool_s_cpu": statistics.median(t.pool[0] for t in taken),
                }
            )
        for ours in (p for side, p in turns if side == "ours"):
            for rival, theirs in ((side, p) for side, p in turns if side != "ours"):
                row: dict[str, Any] = {"what": what, "ours": ours, "rival": rival, "recipe": theirs}
                for clock, name in enumerate(("cpu", "wall")):
                    pairs = zip(turns["ours", ours], turns[rival, theirs], strict=True)
                    found = [seconds(b, what)[clock] / seconds(a, what)[clock] for a, b in pairs]
                    row |= {name: statistics.median(found), f"{name}_least": min(found), f"{name}_most": max(found)}
                ratios.append(row)
    return {"rows": rows, "ratios": ratios}


def judge(ratios: list[dict[str, Any]], clock: str) -> list[dict[str, Any]]:
    """Compare stage 2 with what is promised, on one clock."""
    return [
        {name: row[name] for name in ("what", "ours", "rival", "recipe")}
        | {"found": row[clock], "least": least, "holds": row[clock] >= least}
        for row in ratios
        if row["what"] != "stage 1" and (least := LEAST.get((row["ours"], row["recipe"])))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS), help="whose networks and pool to take")
    parser.add_argument("--image-px", type=int, help="28 unless said; 32 for the preset paper")
    parser.add_argument("--channels", type=int, help="1 unless said; 3 for the preset paper")
    parser.add_argument("--architectures", nargs="+", help="of the pool, where not all of them should be timed")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="each a few steps of every kind on both sides")
    parser.add_argument("--rival", nargs="+", default=list(RIVALS), choices=RIVALS, help="the recipe's networks")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--graphs", default="auto", choices=("auto", "off"), help="CUDA graphs of our steps")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a promised ratio is missed")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    else:
        keep_freed_memory()  # for the whole process, so the recipe gains from it as well
    paper = options.preset == "paper"
    shape = {
        "num_classes": NUM_CLASSES,
        "image_px": options.image_px or (32 if paper else 28),
        "channels": options.channels or (3 if paper else 1),
    }
    config, stages = configure(options.preset, shape, options.batch, options.architectures, options.graphs)
    with use_own_stream(device):
        turns = measure(
            config, shape, device, precisions=options.precision, rounds=options.rounds, rivals=options.rival
        )
    clock = "cpu" if device.type == "cpu" else "wall"
    report = summarise(turns, options.batch, stages)
    report |= {
        "claims": judge(report["ratios"], clock),
        "preset": options.preset,
        **shape,
        "batch": options.batch,
        "rounds": options.rounds,
        "graphs": options.graphs if device.type == "cuda" else "off",
        "architectures": list(config.pool.architectures),
        "pool_sgd_steps": config.pool.ages[-1] * len(config.pool.architectures),
        "stage2_images": stages,
        "clock": clock,
        "machine": describe_machine(device.type),
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    print_report(report)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(options.check and any(not claim["holds"] for claim in report["claims"]))


def print_report(report: dict[str, Any]) -> None:
    """Print speeds, ratios and claims."""
    print(
        f"networks of {report['preset']}, {report['image_px']}x{report['image_px']}x{report['channels']}, batch "
        f"{report['batch']}, {report['rounds']} rounds; {report['machine']}, "
        f"{report['threads']} threads, load {report['load']:.1f}, torch {report['torch']}"
    )
    print(
        f"the kept pool takes {report['pool_sgd_steps']} SGD steps ({', '.join(report['architectures'])}), spread over "
        + " or ".join(f"{images:,} images" for images in report["stage2_images"].values())
        + f"; the recipe makes {SGD_STEPS} before every generator step"
    )
    print(f"{'':<30}{'side':<15}{'precision':<11}{'step ms':>9}{'images/s':>10}{'wall ms':>10}{'images/s':>10}")
    for row in report["rows"]:
        print(
            f"{row['what']:<30}{row['side']:<15}{row['precision']:<11}{row['step_ms_cpu']:>9.1f}"
            f"{row['images_per_s_cpu']:>10.1f}{row['step_ms_wall']:>10.1f}{row['images_per_s_wall']:>10.1f}"
        )
    print(f"{'ratio (lowest to highest)':<30}{'ours':<6}{'against':<20}{'processor time':>24}{'wall':>24}")
    for row in report["ratios"]:
        found = [f"{row[c]:.2f} ({row[f'{c}_least']:.2f} to {row[f'{c}_most']:.2f})" for c in ("cpu", "wall")]
        print(f"{row['what']:<30}{row['ours']:<6}{row['rival'] + ' ' + row['recipe']:<20}{found[0]:>24}{found[1]:>24}")
    for claim in report["claims"]:
        verdict = "holds" if claim["holds"] else "MISSED"
        print(
            f"{claim['what']}, ours {claim['ours']} against {claim['rival']} {claim['recipe']}: {claim['found']:.2f}, "
            f"at least {claim['least']:g}: {verdict}"
        )


if __name__ == "__main__":
    sys.exit(main())
