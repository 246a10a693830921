#!/usr/bin/env python3
"""Write lab/all-results.md, the tables in lab/ablations.md and docs/results.md, and charts from lab/results/*.json.

The files are those of `dim eval`, and engines-*.json of benchmarks/engines.py, gpu-*.json of lab/gpu_run.py,
distill-*.json of lab/distill_speed.py, processes-*.json of lab/processes.py, ablation-*.json of lab/ablation.py.

dim eval --bundle mnist.dim --data mnist --preset full --out eval/mnist
cp eval/mnist/results.json lab/results/mnist.json
python -m lab.pages.results                    # writes the pages, lab/results/*.png and docs/images/results-*.png
python -m lab.pages.results --check            # fails if a page is not what the files say
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.evaluation.chart import draw_chart, draw_networks_chart
from dim.evaluation.table import PUBLISHED_EPOCHS
from dim.runtime.storage.below import replace_file
from dim.torch_engine.chart import draw_bench_chart
from lab.pages.distilling import ABLATION_MARKS, ablation_text, distill_section, processes_section
from lab.pages.engines import engines_section
from lab.pages.evaluation import evaluation_sections
from lab.pages.summary import SUMMARIES, draw_summary, write_summaries

ROOT = Path(__file__).resolve().parents[2]

HEAD = f"""# All results

Written by `python -m lab.pages.results` from `lab/results/*.json`; do not edit. Only what was measured is here.

Test accuracy in percent, mean ± standard deviation over seeds, of classifiers trained from scratch on generated images,
beside classifiers trained on real images with the same recipe and number of steps. Every row has one generator, unless
it says how many. The test split is used once per student, after the last step. The full protocol is
{PUBLISHED_EPOCHS:,} epochs of N images per class with batch 64 (256 with the recipes `condensation` and
`condensation-all`; 10, 25 and 50 with `reference`); a table with fewer epochs says so.
"-" under "s per student": the student was suspended meanwhile.

Eight digits behind "generated" begin a bundle's content id, where a file has rows of more than one. Bundles of MNIST
differ in the refinement of their fixed latents, which changes nothing in `stream`; 201ea0c5 lies in this repository.

"archive" is the best compressed archive of real images in the bytes of the generator's file, chosen on a hold-out. In
rows of earlier releases, "real, equal bytes" are as many real images, as raw uint8 pixels, as fit into the generator's
file; with soft labels, into that and the teacher's, each image with its logits. PNG files of the same bytes would hold
2.9 times as many images of MNIST.
"""


def read_results(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read every result file, as its stem and its object, sorted by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        others = ("engines-", "gpu-", "distill-", "processes-", "ablation-", "added-", "larger-", "compiled-")
        if path.stem.startswith(others):
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


def write_ablations(page: str, reports: Sequence[dict[str, Any]]) -> str:
    """Put the tables of ablations between their marks into a page."""
    begin, end = ABLATION_MARKS
    before, after = page.split(begin, 1)[0], page.split(end, 1)[1]
    return (
        before + begin + "\n\n" + "\n\n".join("\n".join(ablation_text(each)) for each in reports) + "\n\n" + end + after
    )


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
        sections = evaluation_sections(found)
    except ValueError as error:
        sys.exit(str(error))
    lines = [HEAD, *(line for section in sections for line in section.lines), *benchmarks]
    texts = {page: "\n".join(lines).rstrip() + "\n"}
    page_of_ablations = options.lab / "ablations.md"
    if page_of_ablations.exists():
        ablations = list(read_benchmarks(folder, "ablation", "variants").values())
        texts[page_of_ablations] = write_ablations(page_of_ablations.read_text(encoding="utf-8"), ablations)
    rows = [row for _, described in found for row in described["rows"]]
    page_of_docs = options.lab.parent / "docs" / "results.md"
    if page_of_docs.is_file():
        texts[page_of_docs] = write_summaries(page_of_docs.read_text(encoding="utf-8"), rows)
    if options.check:
        stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path} is not what the result files say: run  python -m lab.pages.results", file=sys.stderr)
        return int(bool(stale))
    for path, text in texts.items():
        replace_file(path.parent, path.name, text.encode())
    for chart in (chart for section in sections for chart in section.charts):
        draw = draw_chart if chart.kind == "sizes" else draw_networks_chart
        draw(chart.rows, folder / f"{chart.stem}.png")
    for summary in SUMMARIES if page_of_docs in texts else ():
        draw_summary(summary, rows, page_of_docs.parent / "images" / f"results-{summary.name}.png")
    for stem, report in cpu.items():
        draw_bench_chart(report, folder / f"{stem}.png")
    print(f"{page}: {len(found)} result files, {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
