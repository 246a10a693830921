#!/usr/bin/env python3
"""Write lab/all-results.md and its charts from lab/results/*.json, and the tables in lab/ablations.md.

The files are those of `dim eval`, and engines-*.json of benchmarks/engines.py, gpu-*.json of lab/gpu_check.sh,
distill-*.json of lab/distill_speed.py, processes-*.json of lab/processes.py, ablation-*.json of lab/ablation.py.

dim eval --bundle mnist.dim --data mnist --preset full --out eval/mnist
cp eval/mnist/results.json lab/results/mnist.json
python -m lab.pages.results                    # writes lab/all-results.md and lab/results/*.png
python -m lab.pages.results --check            # fails if lab/all-results.md is not what the files say
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.evaluation.table import NOT_RUN, PUBLISHED_EPOCHS, draw_chart, draw_networks_chart
from dim.export.card import reproducing_command
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.storage.atomic import replace_file
from dim.torch_engine.chart import draw_bench_chart
from lab.pages.distilling import ABLATION_MARKS, ablation_text, distill_section, processes_section
from lab.pages.engines import engines_section
from lab.pages.evaluation import evaluation_sections

ROOT = Path(__file__).resolve().parents[2]

HEAD = f"""# Results

Written by `python -m lab.pages.results` from `lab/results/*.json`; do not edit.

Test accuracy in percent, mean ± deviation over seeds, of classifiers trained from scratch on generated images, beside
classifiers trained on real images by the same recipe for the same number of steps. The test split is used once per
student, after the last step. The deviation is that of students, and of the images they are shown where those depend on
the seed; every row has one generator, and what another distillation would give is not in it. The full protocol is
{PUBLISHED_EPOCHS:,} epochs of N images per class, batch 64 (256 by the recipes `condensation` and `condensation-all`);
a table with fewer epochs says so. What has not been measured says "{NOT_RUN}"; "-" under "s per student" means that the
student was suspended meanwhile.

Digits behind "generated" begin a bundle's content id, where a table's file has rows of more than one. The bundles of
MNIST and of all CIFAR-10 (JPEG) had their latents of small fixed sets refined (method.md, "The first latents of a fixed
set") after most of their rows of `stream` were measured; refining changes nothing in `stream`. Of CIFAR-10 (JPEG),
54731742 lies in this repository. 934011cc is it before its last refining, and draws the same images in `stream`.
Before that it mirrored nothing (method.md, "What is shown of both"): c112e132 was not refined yet, cedc71d4 and
0a5150c5 are after the first and second pass, both by ConvNets alone, 4675479d after the third, by ResNets as well;
the fourth to seventh, which gave cf43d675, ask for the class too, and for the last two some networks learned from the
set meanwhile. Of its four classes, 3fbfee26 lies in this repository; 87631039 had been shown shifted images and mirrors
nothing.

"Real, equal bytes" are as many real images as fit into the generator's file, in its precision; with soft labels, into
that and the teacher's, each image with its logits. They are priced as raw uint8 pixels, as a set in memory or in an NPZ
file. As PNG files the same bytes would hold 2.9 times as many images of MNIST and 1.5 times as many of CIFAR-10 (means
over 5,000 and 3,000 images, file names and blocks of the disk not counted), so this control is smaller than a packed
set of the same size could be.
"""


def read_results(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read every result file, as its stem and its object, sorted by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(("engines-", "gpu-", "distill-", "processes-", "ablation-")):
            continue  # see `read_benchmarks`
        described = json.loads(path.read_bytes())
        if described.get("format_version") != 1 or not isinstance(described.get("rows"), list):
            sys.exit(f"{path} is not a results.json of dim eval: remove it, or copy the right file.")
        found.append((path.stem, described))
    return found


def read_benchmarks(folder: Path, prefix: str, field: str) -> dict[str, dict[str, Any]]:
    """Read the benchmark files of one kind by their stems; each must have a field that tells its kind."""
    found = {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob(f"{prefix}-*.json"))}
    for stem, report in found.items():
        if not isinstance(report, dict) or field not in report:
            sys.exit(f"{folder / stem}.json has no {field!r}: remove it, or copy the right file.")
    return found


def write_method(page: str, reports: Sequence[dict[str, Any]]) -> str:
    """Put the ablations between their marks into the page about the method."""
    begin, end = ABLATION_MARKS
    before, rest = page.split(begin, 1)
    _, after = rest.split(end, 1)
    texts = ["\n".join(ablation_text(report)) for report in reports]
    if not any(report["preset"] == "best" and "stage1.steps" not in report["changed"] for report in reports):
        texts.append(
            f"The preset `best` in full length: {NOT_RUN}. `python -m lab.reproduce --ablation full` runs it so."
        )
    return before + begin + "\n\n" + "\n\n".join(texts) + "\n\n" + end + after


def bundles() -> list[Path]:
    """List the bundles of this repository."""
    return [*SHIPPED.parent.glob("*.dim"), *(ROOT / "bundles").glob("*.dim")]


def _by_best() -> set[str]:
    """Return the datasets of which this repository has a bundle by the preset `best` as it is, nothing changed."""
    lines = [(m.source.name, reproducing_command(m.distill_config) or "") for m in map(load_manifest, bundles())]
    return {name for name, line in lines if " --preset best " in line and " --set " not in line}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lab", type=Path, default=ROOT / "lab")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the page is out of date")
    options = parser.parse_args(arguments)
    if not options.lab.is_dir():
        sys.exit(f"There is no folder {options.lab}: --lab is the one that holds results/.")
    page, folder = options.lab / "all-results.md", options.lab / "results"
    found, cpu = read_results(folder), read_benchmarks(folder, "engines", "ratios")
    benchmarks = distill_section(read_benchmarks(folder, "distill", "ratios"))
    benchmarks += processes_section(read_benchmarks(folder, "processes", "processes"))
    benchmarks += engines_section(cpu, read_benchmarks(folder, "gpu", "steps"))
    try:
        sections = evaluation_sections(found, _by_best())
    except ValueError as error:
        sys.exit(str(error))
    lines = [HEAD, *(line for section in sections for line in section.lines), *benchmarks]
    texts = {page: "\n".join(lines).rstrip() + "\n"}
    method = options.lab / "ablations.md"
    if method.exists():
        ablations = list(read_benchmarks(folder, "ablation", "variants").values())
        texts[method] = write_method(method.read_text(encoding="utf-8"), ablations)
    if options.check:
        stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path} is not what the result files say: run  python -m lab.pages.results", file=sys.stderr)
        return int(bool(stale))
    for path, text in texts.items():
        replace_file(path, text.encode())
    for chart in (chart for section in sections for chart in section.charts):
        draw = draw_chart if chart.kind == "sizes" else draw_networks_chart
        draw(chart.rows, folder / f"{chart.stem}.png")
    for stem, report in cpu.items():
        draw_bench_chart(report, folder / f"{stem}.png")
    print(f"{page}: {len(found)} result files, {sum(len(described['rows']) for _, described in found)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
