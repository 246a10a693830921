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
from pathlib import Path

from dim.export.untrained import export_untrained
from dim.runtime.benchmark.benchmark import benchmark
from dim.runtime.benchmark.options import BATCHES, BenchOptions
from dim.runtime.benchmark.report import BenchReport, check_promises
from dim.runtime.bundle_format.files import load_manifest
from dim.torch_engine.chart import draw_bench_chart
from dim.torch_engine.rivals import torch_rivals


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


def note(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
