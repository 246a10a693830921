#!/usr/bin/env python3
"""How fast the engines draw, against PyTorch, in one interleaved run; and whether the promised ratios hold.

    python bench/engines.py --bundle runs/mnist/mnist.dim
    python bench/engines.py --preset paper --device cpu --out docs/results/engines-cpu.json
    python bench/engines.py --preset paper --check           # exit code 1 if a ratio is missed

Without a bundle, the generator of a preset is built with random weights and exported: speed does not depend on them.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from dim.bench_chart import draw_bench_chart
from dim.runtime.bench_report import BenchReport
from dim.runtime.benchmark import BATCHES, benchmark
from dim.runtime.bundle_files import load_manifest, write_bundle
from dim.runtime.manifest import SourceInfo
from dim.torch_rivals import torch_rivals

GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
FLOOR_TFLOP_PER_S = 500.0
"""What a data-centre GPU sustains in half precision; half of it is the aim."""


def main() -> None:
    """Measure, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle that dim export made")
    parser.add_argument("--preset", default="paper", help="or the generator of this preset, for 32x32 RGB, ten classes")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write the report as JSON, and the chart beside it as PNG")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a promised ratio is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or preset_bundle(options.preset, Path(folder))
        manifest = load_manifest(bundle)
        rivals = torch_rivals(manifest, options.device, threads=options.threads)
        report = benchmark(
            bundle,
            device=options.device,
            batches=options.batch,
            rivals=rivals,
            threads=options.threads,
            rounds=options.rounds,
            say=note,
            progress=lambda what, done, total: note(f"{done + 1}/{total} {what}"),
        )
    print_report(report)
    claims = judge(report, resizes=manifest.distill_config["generator"]["kind"] == "resize")
    for claim in claims:
        found = "not measured" if claim["found"] is None else f"{claim['found']:.2f}"
        verdict = "" if claim["holds"] is None else ("  holds" if claim["holds"] else "  MISSED")
        print(f"{claim['claim']}: {found}, at least {claim['least']:g}{verdict}")
    if options.out:
        told = {**report.to_dict(), "bundle": bundle.name, "claims": claims}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        draw_bench_chart(told, options.out.with_suffix(".png"))
    if options.check and any(claim["holds"] is False for claim in claims):
        sys.exit(1)


def judge(report: BenchReport, resizes: bool, batch: int = 256) -> list[dict[str, Any]]:
    """Compare the report with what is promised, at one batch size.

    Args:
        report: of an interleaved run.
        resizes: the generator upsamples by resize + convolution; int8 gains little on transposed convolutions.
        batch: the batch that is judged.
    """
    cpu, fp32 = "onnxruntime-cpu", "fp32"
    wanted = [
        ("fp32 ONNX Runtime against torch eager", report.ratio(cpu, fp32, "torch-eager", fp32, batch), 2.0),
        ("fp32 ONNX Runtime against channels_last", report.ratio(cpu, fp32, "torch-channels-last", fp32, batch), 1.5),
    ]
    if resizes:
        wanted.append(("int8 against fp32 on the CPU", report.ratio(cpu, "int8", cpu, fp32, batch), 2.5))
    ran = {row.engine for row in report.results if row.device == "gpu"}
    best = next((engine for engine in GPU_ENGINES if engine in ran), None)
    if best is not None:
        fp16 = report.ratio(best, "fp16", "torch-compile", "fp16", batch)
        wanted.append((f"fp16 {best} against torch.compile fp16", fp16, 1.5))
        fastest = max(row.images_per_s for row in report.results if row.engine == best)
        floor = FLOOR_TFLOP_PER_S * 1e3 / report.gflop_per_image
        wanted.append((f"{best} against {FLOOR_TFLOP_PER_S:g} TFLOP/s of arithmetic", fastest / floor, 0.5))
    return [
        {"claim": claim, "found": found, "least": least, "holds": None if found is None else found >= least}
        for claim, found, least in wanted
    ]


def print_report(report: BenchReport) -> None:
    """Print the tables."""
    print(f"{report.gflop_per_image:.3g} GFLOP per image; {report.machine}, {report.cores} cores; GPU: {report.gpu}")
    for rate in report.product_rates:
        print(f"matrix products through {rate.engine} {rate.precision}: {rate.gflop_per_s:,.0f} GFLOP/s")
    print(f"{'engine':<22}{'precision':<11}{'device':<8}{'batch':>6}{'images/s':>12}{'latency ms':>12}{'share':>8}")
    for row in report.results:
        share = "" if row.share_of_product_rate is None else f"{row.share_of_product_rate:.0%}"
        speed = f"{row.images_per_s:,.0f}{'*' if row.best else ' '}"
        print(
            f"{row.engine:<22}{row.precision:<11}{row.device:<8}{row.batch:>6}{speed:>12}{row.latency_ms:>12.2f}{share:>8}"
        )
    print("* the best batch of the engine")
    for each in report.ratios:
        print(
            f"{each.engine} {each.precision} / {each.against} {each.against_precision}, batch {each.batch}: "
            f"{each.ratio:.2f} ({each.least:.2f} to {each.most:.2f})"
        )
    for gap in report.not_run:
        where = "" if gap.batch is None else f" at batch {gap.batch}"
        print(f"not run: {gap.engine} {gap.precision}{where}: {gap.reason}")


def preset_bundle(preset: str, folder: Path) -> Path:
    """Export the generator of a preset, untrained, in every precision."""
    from types import SimpleNamespace

    import torch

    from dim.export.half import to_half
    from dim.export.int8 import to_int8
    from dim.export.to_onnx import generator_to_onnx
    from dim.generator import build_generator
    from dim.presets import preset as find_preset
    from dim.runtime.sampling import draw_latents, order_slice

    counts = (5000,) * 10
    data = SimpleNamespace(name="cifar10", classes=tuple("0123456789"), class_counts=counts, height=32)
    generator_config = find_preset(preset, data=data).generator
    config = {**vars(generator_config), "num_classes": 10, "image_px": 32, "channels": 3}
    torch.manual_seed(0)
    canonical = generator_to_onnx(build_generator(config))
    labels, indices = order_slice([64] * 10, 0, 640)
    latents = draw_latents(0, labels, indices, config["latent_dim"], 1.0)
    path = folder / f"{preset}.dim"
    write_bundle(
        path,
        files={
            "generator.fp32.onnx": canonical,
            "generator.fp16.onnx": to_half(canonical),
            "generator.int8.onnx": to_int8(canonical, latents, labels),
        },
        name=preset,
        created_by="bench/engines.py",
        classes=data.classes,
        height=32,
        width=32,
        channels=3,
        latent_dim=config["latent_dim"],
        latent_std=1.0,
        source=SourceInfo(
            name="none", class_counts=counts, mean=(0.5,) * 3, std=(0.5,) * 3, licence="", note="random weights"
        ),
        distill_config={"generator": config},
        licence="",
    )
    return path


def note(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
