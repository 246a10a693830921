#!/usr/bin/env python3
"""How fast the engines draw, against PyTorch, in one interleaved run; and whether the promised ratios hold.

    python benchmarks/engines.py --device cpu --out lab/results/engines-cpu.json --check
    python benchmarks/engines.py --preset paper --device cpu --out lab/results/engines-paper-cpu.json
    python benchmarks/engines.py --preset paper --check           # exit code 1 if a ratio is missed

Without a bundle, the generator of a preset is built with random weights and exported: speed does not depend on them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dim.runtime.benchmark.benchmark import benchmark
from dim.runtime.benchmark.options import BATCHES, BenchOptions
from dim.runtime.benchmark.report import BenchReport
from dim.runtime.bundle_format.files import load_manifest, write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, SamplingInfo, SourceInfo, onnx_name
from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.engines.names import ENGINES
from dim.runtime.sampling.latents import draw_latents, order_slice

GPU_TFLOP_PER_S = 500.0
"""Arithmetic that a data-centre GPU sustains in half precision; half of it is promised."""
CLASS_COUNTS = (5000,) * 10
CALIBRATION_PER_CLASS = 64


def main() -> None:
    """Measure, print, write, check."""
    from dim.torch_engine.chart import draw_bench_chart
    from dim.torch_engine.rivals import torch_rivals

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
        bundle = options.bundle or export_untrained(options.preset, Path(folder))
        manifest = load_manifest(bundle)
        rivals = torch_rivals(manifest, options.device, threads=options.threads)
        report = benchmark(
            bundle,
            BenchOptions(device=options.device, batches=options.batch, threads=options.threads, rounds=options.rounds),
            rivals=rivals,
            say=note,
            progress=lambda what, done, total, name: note(f"{done + 1}/{total} {name}"),
        )
    print_report(report)
    claims = check_promises(report, resizes=manifest.distill_config["generator"]["kind"] == "resize")
    for claim in claims:
        found = "not measured" if claim["found"] is None else f"{claim['found']:.2f}"
        verdict = "" if claim["holds"] is None else ("  holds" if claim["holds"] else "  MISSED")
        print(f"{claim['claim']}: {found}, at least {claim['least']:g}{verdict}")
    if options.out:
        described = {**report.to_dict(), "bundle": bundle.name, "claims": claims}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        draw_bench_chart(described, options.out.with_suffix(".png"))
    if options.check and any(claim["holds"] is False for claim in claims):
        sys.exit(1)


def print_report(report: BenchReport) -> None:
    """Print the tables."""
    print(f"{report.gflop_per_image:.3g} GFLOP per image; {report.machine}, {report.cores} cores; GPU: {report.gpu}")
    print(f"{report.date}, load {report.load} before; {report.versions}")
    print(f"{'engine':<22}{'precision':<11}{'device':<8}{'batch':>6}{'images/s':>12}{'latency ms':>12}")
    for row in report.results:
        speed = f"{row.images_per_s:,.0f}{'*' if row.best else ' '}"
        print(f"{row.engine:<22}{row.precision:<11}{row.device:<8}{row.batch:>6}{speed:>12}{row.latency_ms:>12.2f}")
    print("* the best batch of the engine")
    for each in report.ratios:
        print(
            f"{each.engine} {each.precision} / {each.against} {each.against_precision}, batch {each.batch}: "
            f"{each.ratio:.2f} ({each.least:.2f} to {each.most:.2f})"
        )
    for gap in report.not_run:
        where = "" if gap.batch is None else f" at batch {gap.batch}"
        print(f"not run: {gap.engine} {gap.precision}{where}: {gap.reason}")


def export_untrained(preset: str, folder: Path, precisions: Sequence[str] = PRECISIONS) -> Path:
    """Export the generator of a preset, untrained, for ten classes of 32x32 RGB images.

    Args:
        preset: as `dim distill --preset` knows it.
        folder: where `<preset>.dim` goes.
        precisions: `fp32` and any others.

    Returns:
        the bundle's folder.

    Raises:
        BadValueError: there is no such preset.
        GraphError: torch cannot export it.
    """
    import torch

    from dim.export.graph.half import to_half
    from dim.export.graph.int8 import to_int8
    from dim.export.graph.trace import generator_to_onnx
    from dim.networks.generator import generator_from_dict
    from dim.presets import preset as find_preset

    data: Any = SimpleNamespace(name="cifar10", classes=tuple("0123456789"), class_counts=CLASS_COUNTS, height=32)
    config = {**vars(find_preset(preset, data=data).generator), "num_classes": 10, "image_px": 32, "channels": 3}
    torch.manual_seed(0)
    files = {onnx_name("fp32"): generator_to_onnx(generator_from_dict(config))}
    canonical = files[onnx_name("fp32")]
    if "fp16" in precisions:
        files[onnx_name("fp16")] = to_half(canonical)
    if "int8" in precisions:
        labels, indices = order_slice([CALIBRATION_PER_CLASS] * 10, 0, 10 * CALIBRATION_PER_CLASS)
        files[onnx_name("int8")] = to_int8(
            canonical, draw_latents(0, labels, indices, config["latent_dim"], 1.0), labels
        )
    path = folder / f"{preset}.dim"
    half = (0.5,) * 3
    write_bundle(
        path,
        BundleDescription(
            name=preset,
            created_by="untrained, for benchmarks",
            classes=data.classes,
            image=ImageShape(height=32, width=32, channels=3),
            sampling=SamplingInfo(latent_dim=config["latent_dim"], latent_std=1.0),
            source=SourceInfo(
                name="none", class_counts=CLASS_COUNTS, mean=half, std=half, licence="", note="random weights"
            ),
            distill_config={"generator": config},
            licence="",
        ),
        files,
    )
    return path


def check_promises(report: BenchReport, resizes: bool, batch: int = 256) -> list[dict[str, Any]]:
    """Compare a report with the promised speeds, at one batch size.

    Args:
        report: of an interleaved run.
        resizes: the generator upsamples by resize + convolution; int8 gains little on transposed convolutions.
        batch: images per call.

    Returns:
        objects with `claim`, `found`, `least`, and `holds`, which is None where it was not measured.
    """
    cpu, fp32 = "onnxruntime-cpu", "fp32"
    promises: list[tuple[str, float | None, float]] = []
    if "cpu" in {row.device for row in report.results} | {each.device for each in report.ratios}:
        promises += [
            ("fp32 ONNX Runtime against torch eager", _find_ratio(report, cpu, fp32, "torch-eager", fp32, batch), 2.0),
            (
                "fp32 ONNX Runtime against channels_last",
                _find_ratio(report, cpu, fp32, "torch-channels-last", fp32, batch),
                1.5,
            ),
        ]
        if resizes:
            promises.append(("int8 against fp32 on the CPU", _find_ratio(report, cpu, "int8", cpu, fp32, batch), 2.5))
    if any(each.engine == "openvino-cpu" for each in report.ratios):
        openvino, bf16 = "openvino-cpu", "bf16"
        promises += [
            ("fp32 OpenVINO against ONNX Runtime", _find_ratio(report, openvino, fp32, cpu, fp32, batch), 1.0),
            ("bf16 OpenVINO against fp32 ONNX Runtime", _find_ratio(report, openvino, bf16, cpu, fp32, batch), 2.0),
            (
                "bf16 OpenVINO against torch.compile bf16",
                _find_ratio(report, openvino, bf16, "torch-compile", bf16, batch),
                1.0,
            ),
        ]
    ran = {row.engine for row in report.results if row.device == "gpu"}
    best = next((engine for engine, device in ENGINES.items() if device == "gpu" and engine in ran), None)
    if best is not None:
        fp16 = _find_ratio(report, best, "fp16", "torch-compile", "fp16", batch)
        promises.append((f"fp16 {best} against torch.compile fp16", fp16, 1.5))
        fastest = max(row.images_per_s for row in report.results if row.engine == best)
        floor = GPU_TFLOP_PER_S * 1e3 / report.gflop_per_image
        promises.append((f"{best} against {GPU_TFLOP_PER_S:g} TFLOP/s of arithmetic", fastest / floor, 0.5))
    return [
        {"claim": claim, "found": found, "least": least, "holds": None if found is None else found >= least}
        for claim, found, least in promises
    ]


def _find_ratio(
    report: BenchReport, engine: str, precision: str, against: str, against_precision: str, batch: int
) -> float | None:
    """Return the measured ratio of two contenders, None where they were not measured together."""
    for each in report.ratios:
        pair = (each.engine, each.precision, each.against, each.against_precision, each.batch)
        if pair == (engine, precision, against, against_precision, batch):
            return each.ratio
    return None


def note(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
