"""The evaluation's part of lab/all-results.md, from the `results.json` files of `dim eval`.

One section per dataset: a name, and the data themselves by their fingerprint, so that one name at two image sizes never
shares a table. Rows of all files of a dataset are joined first: files of single cells and overlapping files are alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dim.evaluation.archive import Archive
from dim.evaluation.results import Row
from dim.evaluation.table import APART, PUBLISHED_EPOCHS, format_accuracy, format_bytes, list_columns, network_name
from dim.students.recipes import CONDENSATION, PUBLISHED
from lab.pages.quotes import Setting, quote_abstract, quote_sets

TITLES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
"""By the name that `load_data` gives a dataset; in the order of the page, others after them."""
NETWORKS = (
    "convnet3",
    "resnet18",
    "resnet18-half",
    "resnet10",
    "resnet10-half",
    "resnetap10-half",
    "vgg11",
    "densenet",
    "mlp",
)
CONTROLS = {
    "paper": "the preset `paper`, equal time",
    "paper loss": "the published matching loss",
    "no matching": "stage 2 without matching",
    "stage 1 alone": "the stage-1 GAN, no stage 2",
}
"""What the page calls the bundles that `lab/reproduce.py` compares with, by the names it gives them."""
MODES = {
    "fixed": "`fixed`: one set, the files that `dim generate --ipc N` writes, the same for every seed up to as "
    "many images per class as the bundle has fixed latents. Real: as many random real images, others for every seed.",
    "stream": "`stream`: N fresh images per class in every epoch. Real: real images for as many steps, the ceiling.",
}
SOFT = "Soft labels of the bundle's teacher, for generated and real images alike; not to be compared with hard labels:"
NAMED = (PUBLISHED.name, CONDENSATION.name)
"""Recipes of other papers, which no hold-out chose."""

Described = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture of the page, beside it as `results/<stem>.png`."""

    stem: str
    kind: str
    """`sizes`: accuracy over images per class; `networks`: networks side by side."""
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page says about one dataset."""

    lines: tuple[str, ...]
    charts: tuple[Chart, ...] = ()


def evaluation_sections(found: Sequence[tuple[str, Described]]) -> list[Section]:
    """Write a section per dataset that was measured.

    Args:
        found: stems and contents of the `results.json` files.

    Raises:
        ValueError: two files measure one thing and disagree.
    """
    groups: dict[str, dict[str, list[tuple[str, Described]]]] = {name: {} for name in TITLES}
    for stem, described in found:
        data = described["data"]
        groups.setdefault(data["name"], {}).setdefault(data["fingerprint"], []).append((stem, described))
    sections = []
    for name, by_fingerprint in groups.items():
        # Two groups of one size need more than the size to be told apart.
        sizes = Counter(_size(files[0][1]["data"]) for files in by_fingerprint.values())
        for fingerprint, files in sorted(by_fingerprint.items(), key=lambda item: _pixels(item[1][0][1]["data"])):
            size = _size(files[0][1]["data"])
            mark = f" ({fingerprint[:8]})" if sizes[size] > 1 else ""
            suffix = f"-{size}" if len(by_fingerprint) > 1 else ""
            suffix += f"-{fingerprint[:8]}" if mark else ""
            title = f"{TITLES.get(name, name)}, {size}{mark}"
            sections.append(_measured(name, title, files, _slug(name + suffix)))
    return sections


def _size(data: Described) -> str:
    height, width, channels = data["image"]
    return f"{height}x{width} {'grey' if channels == 1 else 'colour'}"


def _pixels(data: Described) -> tuple[int, int, str]:
    height, width, channels = data["image"]
    return -height * width, -channels, data["fingerprint"]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def join_rows(files: Sequence[tuple[str, Described]]) -> list[Row]:
    """Join the rows of several files of one dataset: each measurement once, that with the most seeds.

    Raises:
        ValueError: two files measure one thing and disagree.
    """
    joined: dict[tuple[Any, ...], Row] = {}
    for _, described in files:
        for read in described["rows"]:
            row = read | {"subject": CONTROLS.get(read["subject"], read["subject"])}
            if row["source"] == "real-bytes" and "images_per_class" not in row:  # an older file
                row["images_per_class"] = row["distinct_images"] // described["data"]["classes"]
            names = ("source", "subject", "content_id", "mode", "ipc", "arch", "width", "labels", "recipe", "precision")
            key = (*(row[name] for name in names), row["epochs"], row.get("engine_precision"))
            key += (row.get("images_per_class", 0), max(1, row.get("generators", 1)))
            other = joined.setdefault(key, row)
            fewer, more = sorted((other, row), key=lambda one: len(one["seeds"]))
            if not _by_seed(fewer).items() <= _by_seed(more).items():
                raise ValueError(
                    f"Two files measure {row['data']}, {row['subject']}, {row['arch']}, {row['mode']}, IPC "
                    f"{row['ipc']}, {row['labels']} labels, {row['recipe']} recipe, {row['epochs']} epochs: keep one "
                    "of them."
                )
            joined[key] = other if len(other["seeds"]) == len(row["seeds"]) else more
    return _told_apart(list(joined.values()))


def _by_seed(row: Row) -> dict[int, float]:
    return dict(zip(row["seeds"], row["accuracies"], strict=True))


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """Add to a name what tells two of it apart: a bundle's content id, or the size of a control of equal bytes."""

    def mark(row: Row) -> str:
        sized = row["source"] in ("real-bytes", "archive")
        return f"{row['images_per_class']} per class" if sized else str(row["content_id"])[:8]

    marks: dict[str, set[str]] = {}
    for row in rows:
        marks.setdefault(row["subject"], set()).add(mark(row))
    return [
        row | {"subject": f"{row['subject']} ({mark(row)})"} if len(marks[row["subject"]]) > 1 else row for row in rows
    ]


def setting_of(row: Row) -> Setting:
    return row["recipe"], row["epochs"], row["precision"]


def _measured(name: str, title: str, files: Sequence[tuple[str, Described]], slug: str) -> Section:
    """Write everything about one dataset."""
    rows = join_rows(files)
    whole = [row for row in rows if row["source"] == "whole"]
    drawn = [row for row in rows if row["source"] != "whole"]
    counts = Counter(setting_of(row) for row in drawn)
    full = [one for one in counts if one[1] == PUBLISHED_EPOCHS and one[0] not in NAMED]
    main = max(full or counts, key=lambda one: counts[one], default=None)
    lines = [f"## {title}", "", *_sources(files)]
    lines += [
        f"- The whole training split, {network_name(row['arch'], row['width'])}, {row['epochs']} epochs, "
        f"{row['recipe']} recipe: {format_accuracy(row)} %."
        for row in whole
    ]
    lines.append("")
    if name == "cifar10":
        lines += [*quote_abstract(drawn), "", *quote_sets(drawn), ""]
    charts: list[Chart] = []
    for setting in sorted(counts, key=lambda one: (one != main, -one[1], one)):
        here = [row for row in drawn if setting_of(row) == setting]
        lines += [f"### {title}: {_words(setting)}", ""]
        for mode, meaning in MODES.items():
            if of_mode := [row for row in here if row["mode"] == mode and row["source"] not in APART]:
                lines += [meaning, "", *matrix(of_mode), ""]
        lines += few_real(here)
        stem = slug if setting == main else _slug(f"{slug}-{'-'.join(map(str, setting))}")
        for chart, text in _charts(here, stem):
            charts.append(chart)
            lines += [f"![{text}](results/{chart.stem}.png)", ""]
    summary = "<details><summary>Where every number comes from</summary>"
    lines += [summary, "", *provenance(rows, files[0][1]["data"]), "", "</details>", ""]
    return Section(lines=tuple(lines), charts=tuple(charts))


def _words(setting: Setting) -> str:
    recipe, epochs, precision = setting
    shortened = "" if epochs == PUBLISHED_EPOCHS else f", a shortened protocol ({PUBLISHED_EPOCHS:,} in full)"
    return f"{recipe} recipe, {epochs:,} epochs, students in {precision}{shortened}"


def _sources(files: Sequence[tuple[str, Described]]) -> list[str]:
    sources: dict[str, list[str]] = {}
    for stem, described in files:
        data = described["data"]
        source = (
            f"{data['train_images']:,} training and {data['test_images']:,} test images, {data['classes']} classes; "
            f"{data['note'] or data['name']}. SHA-256 {data['fingerprint'][:16]}."
        )
        sources.setdefault(source, []).append(f"{stem}.json")
    return [f"- Data ({', '.join(stems)}): {source}" for source, stems in sources.items()]


def matrix(rows: Sequence[Row]) -> list[str]:
    """Write the tables of one setting and mode: hard labels, then soft ones; a line per network and kind of images."""
    lines = []
    for labels in ("hard", "soft"):
        here = [row for row in rows if row["labels"] == labels]
        ipcs = sorted({row["ipc"] for row in here})
        if not here:
            continue
        lines += ["", SOFT, ""] if labels == "soft" else []
        lines += [
            f"| network | trained on | {' | '.join(f'IPC {ipc}' for ipc in ipcs)} |",
            "|---|---|" + "---:|" * len(ipcs),
        ]
        networks = {(row["arch"], row["width"]) for row in here}
        for arch, width in sorted(networks, key=lambda one: (_order(one[0]), one[1] or 0)):
            of_network = [row for row in here if (row["arch"], row["width"]) == (arch, width)]
            subjects = [subject for _, subject in list_columns(of_network)]
            for subject in sorted(subjects, key=lambda one: one != "generated"):
                cells = {row["ipc"]: format_accuracy(row) for row in of_network if row["subject"] == subject}
                name = subject if labels == "hard" else f"{subject}, soft labels"
                texts = " | ".join(cells.get(ipc, "") for ipc in ipcs)
                lines.append(f"| {network_name(arch, width)} | {name} | {texts} |")
    return lines


def few_real(rows: Sequence[Row]) -> list[str]:
    """Write the table of students of few real images, alone and with generated ones in every batch; none without."""
    alone = {_place(row): row for row in rows if row["source"] == "few"}
    lines = []
    for row in rows:
        if row["source"] == "mixed" and (few := alone.get(_place(row))):
            name = f"{network_name(row['arch'], row['width'])} | {row['ipc']} | {row['real_percent']:g} %"
            lines.append(f"| {name} | {format_accuracy(few)} | {format_accuracy(row)} |")
    if not lines:
        return []
    heads = [
        "| network | IPC | real images | alone | with generated ones in half of every batch |",
        "|---|---:|---:|---:|---:|",
    ]
    return ["Few real images, the steps of `stream`:", "", *heads, *lines, ""]


def _place(row: Row) -> tuple[Any, ...]:
    return row["arch"], row["width"], row["ipc"], row["labels"], row["real_percent"]


def _order(arch: str) -> int:
    return NETWORKS.index(arch) if arch in NETWORKS else len(NETWORKS)


def _charts(rows: Sequence[Row], stem: str) -> list[tuple[Chart, str]]:
    """List the charts of one setting with what they show."""
    charts = []
    if len({row["ipc"] for row in rows}) > 1:
        charts.append((Chart(stem=stem, kind="sizes", rows=tuple(rows)), "accuracy over images per class"))
    networks: dict[int, set[tuple[str, int | None]]] = {}
    for row in rows:
        if row["source"] == "bundle" and row["labels"] == "hard":
            networks.setdefault(row["ipc"], set()).add((row["arch"], row["width"]))
    ipc = max(networks, key=lambda one: (len(networks[one]), one == 10), default=0)
    if len(networks.get(ipc, ())) > 1:
        here = [row for row in rows if row["ipc"] == ipc and row["labels"] == "hard"]
        shown = tuple(row for mode in MODES for row in _beside_real([row for row in here if row["mode"] == mode]))
        title = f"accuracy of networks at {ipc} images per class"
        charts.append((Chart(stem=f"{stem}-networks", kind="networks", rows=shown), title))
    return charts


def _beside_real(rows: Sequence[Row]) -> list[Row]:
    """Of one mode: the bundle that most networks were trained on, and the real images."""
    trained = Counter((row["subject"], row["content_id"]) for row in rows if row["source"] == "bundle")
    best = trained.most_common(1)[0][0] if trained else None
    name = best[0].removesuffix(f" ({best[1][:8]})") if best else ""  # another mode may have other latents
    return [
        row | {"subject": name} if row["source"] == "bundle" else row
        for row in rows
        if row["source"] == "real" or (row["subject"], row["content_id"]) == best
    ]


def _describe_archive(row: Row) -> str:
    archive = row.get("archive")
    return f" ({Archive(**archive)})" if archive else ""


def provenance(rows: Sequence[Row], data: Described) -> list[str]:
    """Write where every number comes from."""
    images = f"{'x'.join(map(str, data['image']))}, {data['fingerprint'][:8]}"
    lines = [
        "| trained on | network | mode | IPC | recipe, epochs | accuracy | seeds | steps | distinct images "
        "| bytes kept | s per student | data | images drawn by | machine, threads | ended | bundle |",
        "|---|---|---|---:|---|---:|---|---:|---:|---:|---:|---|---|---|---|---|",
    ]
    for row in rows:
        texts = [
            row["subject"] + ("" if row["labels"] == "hard" else ", soft labels") + _describe_archive(row),
            network_name(row["arch"], row["width"]),
            row["mode"],
            str(row["ipc"] or ""),
            f"{row['recipe']}, {row['epochs']:,}, {row['precision']}",
            format_accuracy(row) + (f", {row['diverged']} diverged" if row["diverged"] else ""),
            ", ".join(map(str, row["seeds"])),
            f"{row['steps']:,}",
            f"{row['distinct_images']:,}",
            format_bytes(row["data_bytes"]),
            "-" if row["seconds_per_student"] is None else f"{row['seconds_per_student']:,.0f}",
            images,
            row["engine"] or "-",
            f"{row['machine']}, {row['threads']}; torch {row['torch_version']}",
            row["date"],
            row["content_id"][:12] or "-",
        ]
        lines.append(f"| {' | '.join(texts)} |")
    return lines
