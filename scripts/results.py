#!/usr/bin/env python3
"""Write docs/results.md and its charts from docs/results/*.json, and the ablation in docs/method.md.

The files are those of `dim eval`, and engines-*.json of bench/engines.py, gpu-*.json of scripts/gpu_check.sh,
distill-*.json of bench/distill.py, ablation-*.json of bench/ablation.py.

dim eval --bundle mnist.dim --data mnist --preset full --out eval/mnist
cp eval/mnist/results.json docs/results/mnist.json
scripts/results.py                    # writes docs/results.md and docs/results/*.png
scripts/results.py --check            # fails if docs/results.md is not what the files say
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.bench_chart import draw_bench_chart
from dim.bench_page import engines_section
from dim.distill_page import ABLATION_MARKS, ablation_text, distill_section
from dim.eval_table import (
    PUBLISHED_EPOCHS,
    Row,
    columns_of,
    draw_chart,
    format_accuracy,
    format_bytes,
    network_name,
)
from dim.runtime.atomic import replace_file

DATASETS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
NETWORKS = ("convnet3", "resnet18", "resnet18-half", "resnet10-half", "resnetap10-half", "vgg11", "densenet", "mlp")
MODES = {
    "fixed": "`fixed`: one set, the files that `dim generate --ipc N` writes. Real: as many random real images.",
    "stream": "`stream`: N fresh images per class in every epoch. Real: real images for as many steps, the ceiling.",
}
IPCS = (1, 10, 50, 100, 500)
NOT_RUN = "not run"
HEAD = f"""# Results

Written by `scripts/results.py` from `docs/results/*.json`; do not edit.

Test accuracy in percent, mean ± deviation over seeds, of classifiers trained from scratch on generated images, beside
classifiers trained on real images by the same recipe for the same number of steps. The test split is used once per
student, after the last step. The full protocol is {PUBLISHED_EPOCHS:,} epochs of N images per class, batch 64; a table
with fewer epochs says so. What has not been measured says "{NOT_RUN}".
"""


def read_results(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read every result file, as its stem and its object, sorted by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(("engines-", "gpu-", "distill-", "ablation-")):
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


def setting(row: Row) -> tuple[str, int]:
    """Return what one table has in common: the recipe and the number of epochs."""
    return row["recipe"], row["epochs"]


def matrix(rows: Sequence[Row], mode: str, planned: Sequence[str]) -> list[str]:
    """Write one table: a line per network and kind of images, a column per size."""
    rows = [row for row in rows if row["mode"] == mode]
    ipcs = sorted({*IPCS, *(row["ipc"] for row in rows)})
    lines = [
        f"| network | trained on | {' | '.join(f'IPC {ipc}' for ipc in ipcs)} |",
        "|---|---|" + "---:|" * len(ipcs),
    ]
    networks = list(dict.fromkeys((row["arch"], row["width"]) for row in rows))
    networks += [(arch, None) for arch in planned if arch not in {name for name, _ in networks}]
    columns = columns_of(rows) or [("hard", "generated")]
    for arch, width in sorted(networks, key=lambda network: (order(network[0]), network[1] or 0)):
        here = [row for row in rows if (row["arch"], row["width"]) == (arch, width)]
        for labels, subject in columns_of(here) or columns[:1]:
            cells: dict[int, Row] = {}
            for row in here:
                if (row["labels"], row["subject"]) == (labels, subject) and cells.setdefault(row["ipc"], row) != row:
                    sys.exit(
                        f"Two files measure {row['data']}, {subject}, {arch}, {mode}, IPC {row['ipc']}, {labels} "
                        f"labels, {row['recipe']} recipe, {row['epochs']} epochs: keep one of them."
                    )
            name = subject if labels == "hard" else f"{subject}, soft labels"
            texts = [format_accuracy(cells[ipc]) if ipc in cells else NOT_RUN for ipc in ipcs]
            lines.append(f"| {network_name(arch, width)} | {name} | {' | '.join(texts)} |")
    return lines


def order(arch: str) -> int:
    return NETWORKS.index(arch) if arch in NETWORKS else len(NETWORKS)


def provenance(rows: Sequence[Row]) -> list[str]:
    """Write where every number comes from."""
    lines = [
        "| trained on | network | mode | IPC | recipe, epochs | accuracy | seeds | steps | distinct images "
        "| bytes kept | s per student | images drawn by | machine, threads | ended | bundle |",
        "|---|---|---|---:|---|---:|---|---:|---:|---:|---:|---|---|---|---|",
    ]
    for row in rows:
        texts = [
            row["subject"] + ("" if row["labels"] == "hard" else ", soft labels"),
            network_name(row["arch"], row["width"]),
            row["mode"],
            str(row["ipc"] or ""),
            f"{row['recipe']}, {row['epochs']:,}, {row['precision']}",
            format_accuracy(row) + (f", {row['diverged']} diverged" if row["diverged"] else ""),
            ", ".join(map(str, row["seeds"])),
            f"{row['steps']:,}",
            f"{row['distinct_images']:,}",
            format_bytes(row["data_bytes"]),
            f"{row['seconds_per_student']:,.0f}",
            row["engine"] or "-",
            f"{row['machine']}, {row['threads']}; torch {row['torch_version']}",
            row["date"],
            row["content_id"][:12] or "-",
        ]
        lines.append(f"| {' | '.join(texts)} |")
    return lines


def with_bundles_told_apart(rows: Sequence[Row]) -> list[Row]:
    """Add a bundle's content id to its name where two bundles of one name were measured."""
    bundles: dict[str, set[str]] = {}
    for row in rows:
        bundles.setdefault(row["subject"], set()).add(row["content_id"])
    return [
        row | {"subject": f"{row['subject']} ({row['content_id'][:8]})"} if len(bundles[row["subject"]]) > 1 else row
        for row in rows
    ]


def section(name: str, title: str, found: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Write everything about one dataset."""
    lines = [f"## {title}", ""]
    rows = with_bundles_told_apart([row for _, described in found for row in described["rows"]])
    if not rows:
        command = f"dim distill --data {name} --preset best && dim eval --data {name} --preset full"
        return [*lines, f"{NOT_RUN.capitalize()}. `{command}`", ""]
    sources: dict[str, list[str]] = {}
    for stem, described in found:
        data = described["data"]
        source = (
            f"{data['train_images']:,} training and {data['test_images']:,} test images, {data['classes']} classes; "
            f"{data['note'] or data['name']}. SHA-256 {data['fingerprint'][:16]}."
        )
        sources.setdefault(source, []).append(f"{stem}.json")
    lines += [f"- Data ({', '.join(stems)}): {source}" for source, stems in sources.items()]
    whole = [row for row in rows if row["source"] == "whole"]
    lines += [
        f"- The whole training split, {network_name(row['arch'], row['width'])}, {row['epochs']} epochs, "
        f"{row['recipe']} recipe: {format_accuracy(row)} %."
        for row in whole
    ]
    if not whole:
        lines.append(f"- The whole training split: {NOT_RUN}.")
    lines.append("")
    drawn = [row for row in rows if row["source"] != "whole"]
    full = ("default", PUBLISHED_EPOCHS)
    for recipe, epochs in sorted({full, *map(setting, drawn)}, key=lambda pair: (-pair[1], pair[0])):
        here = [row for row in drawn if setting(row) == (recipe, epochs)]
        shortened = "" if epochs == PUBLISHED_EPOCHS else f", a shortened protocol ({PUBLISHED_EPOCHS:,} in full)"
        lines += [f"### {title}: {recipe} recipe, {epochs:,} epochs{shortened}", ""]
        for mode, meaning in MODES.items():
            planned = NETWORKS if (recipe, epochs) == full else ()
            lines += [meaning, "", *matrix(here, mode, planned), ""]
    for stem, described in found:
        if has_chart(described):
            lines += [f"![accuracy over images per class](results/{stem}.png)", ""]
    return [
        *lines,
        "<details><summary>Where every number comes from</summary>",
        "",
        *provenance(rows),
        "",
        "</details>",
        "",
    ]


def has_chart(described: dict[str, Any]) -> bool:
    """Whether a file has several sizes of one protocol, which a chart can join."""
    rows = [row for row in described["rows"] if row["source"] != "whole"]
    return len({row["ipc"] for row in rows}) > 1 and len({setting(row) for row in rows}) == 1


def write_method(page: str, reports: Sequence[dict[str, Any]]) -> str:
    """Put the ablations between their marks into the page about the method."""
    begin, end = ABLATION_MARKS
    before, rest = page.split(begin, 1)
    _, after = rest.split(end, 1)
    texts = ["\n".join(ablation_text(report)) for report in reports] or [f"{NOT_RUN.capitalize()}."]
    return before + begin + "\n\n" + "\n\n".join(texts) + "\n\n" + end + after


def write_markdown(found: Sequence[tuple[str, dict[str, Any]]], benchmarks: Sequence[str] = ()) -> str:
    """Write the whole page; `benchmarks` are the lines of its last sections."""
    lines = [HEAD]
    others = dict.fromkeys(described["data"]["name"] for _, described in found)
    for name, title in {**DATASETS, **{other: other for other in others if other not in DATASETS}}.items():
        lines += section(name, title, [file for file in found if file[1]["data"]["name"] == name])
    lines += benchmarks
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the page is out of date")
    options = parser.parse_args(arguments)
    page, folder = options.docs / "results.md", options.docs / "results"
    found, cpu = read_results(folder), read_benchmarks(folder, "engines", "product_rates")
    benchmarks = distill_section(read_benchmarks(folder, "distill", "ratios"))
    benchmarks += engines_section(cpu, read_benchmarks(folder, "gpu", "steps"))
    texts = {page: write_markdown(found, benchmarks)}
    method = options.docs / "method.md"
    if method.exists():
        ablations = list(read_benchmarks(folder, "ablation", "variants").values())
        texts[method] = write_method(method.read_text(encoding="utf-8"), ablations)
    if options.check:
        stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path} is not what the result files say: run  scripts/results.py", file=sys.stderr)
        return int(bool(stale))
    for path, text in texts.items():
        replace_file(path, text.encode())
    for stem, described in found:
        if has_chart(described):
            draw_chart(described["rows"], folder / f"{stem}.png")
    for stem, report in cpu.items():
        draw_bench_chart(report, folder / f"{stem}.png")
    print(f"{page}: {len(found)} result files, {sum(len(described['rows']) for _, described in found)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
