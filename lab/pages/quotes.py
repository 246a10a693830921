"""What others claim for CIFAR-10, beside what the harness measures: for lab/all-results.md."""

from __future__ import annotations

from collections.abc import Sequence

from dim.evaluation.results import Row
from dim.evaluation.table import PUBLISHED_EPOCHS, format_accuracy

ABSTRACT = {"convnet3": 72.6, "resnet18": 75.1, "resnet18-half": 75.1}
"""CIFAR-10 at ten images per class in the abstract of arXiv 2303.04707; its code halves the width of ResNet-18."""
QUOTE = (
    "The paper's abstract (arXiv 2303.04707) claims 72.6 % with ConvNet-3 and 75.1 % with ResNet-18 at ten images per "
    "class. It does not say for how many steps. The reference code trains a student for 1,000 epochs of fresh images, "
    "as `stream` does, and its ResNet-18 has half the width. Real images at equal steps are the ceiling of a generator."
)

QUOTED_SETS = {
    "random real images": (14.4, 26.0, 43.4),
    "DM": (26.0, 48.9, 63.0),
    "NCFM": (49.5, 71.8, 77.4),
}
"""Accuracy of a ConvNet-3 on CIFAR-10, trained on one set of 1, 10 or 50 images per class, in the NCFM paper."""
QUOTED_IPCS = (1, 10, 50)
QUOTE_SETS = (
    "One fixed set, beside what the NCFM paper (arXiv 2502.20653) quotes for ConvNet-3 and stored pixels. Every method "
    "has its own student recipe: that of DM is `condensation`; NCFM's shows four times as many images. Each of their "
    "sets was made for its size; ours are the first images of one bundle."
)

Setting = tuple[str, int, str]
"""The students' recipe, epochs and precision: what the rows of one table have in common."""


def quote_abstract(rows: Sequence[Row]) -> list[str]:
    """Put the abstract's figures beside what real images at equal steps reach, by every recipe that was measured."""
    lines = [
        QUOTE,
        "",
        "| network | student recipe | the abstract | generated, `stream`, IPC 10 "
        "| real at equal steps, IPC 10 | generated, IPC 50 | real at equal steps, IPC 50 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    shape = {"width": None, "mode": "stream", "labels": "hard", "epochs": PUBLISHED_EPOCHS}
    ours = [row for row in rows if str(row["subject"]).startswith("generated") or row["source"] == "real"]
    here = [row for row in ours if all(row[key] == value for key, value in shape.items())]
    for arch, claim in ABSTRACT.items():
        of_network = sorted((row for row in here if row["arch"] == arch), key=lambda row: str(row["date"]))
        for recipe in sorted({row["recipe"] for row in of_network if row["source"] == "bundle"}):
            found: dict[tuple[str, int], str] = {}
            for row in of_network:  # the newest bundle last
                if row["recipe"] == recipe:
                    bundle = str(row["subject"]).removeprefix("generated") if row["source"] == "bundle" else ""
                    found[row["source"], row["ipc"]] = format_accuracy(row) + bundle
            texts = [found.get((source, ipc), "") for ipc in (10, 50) for source in ("bundle", "real")]
            lines += [f"| {arch} | {recipe} | {claim} | {' | '.join(texts)} |"] if any(texts) else []
    return lines


def quote_sets(rows: Sequence[Row]) -> list[str]:
    """Put small sets of other methods beside ours, by every recipe that was given its 1,000 epochs."""
    shape = {"arch": "convnet3", "width": None, "mode": "fixed", "labels": "hard", "epochs": PUBLISHED_EPOCHS}
    here = [row for row in rows if all(row[key] == value for key, value in shape.items()) and row["ipc"] in QUOTED_IPCS]
    lines = [
        QUOTE_SETS,
        "",
        f"| one set of | student recipe | {' | '.join(f'{ipc} per class' for ipc in QUOTED_IPCS)} |",
        "|---|---|---:|---:|---:|",
        *(f"| {method}, quoted | | {' | '.join(map(str, figures))} |" for method, figures in QUOTED_SETS.items()),
    ]
    found = {(row["subject"], row["recipe"], row["precision"]) for row in here}
    for subject, recipe, precision in sorted(found, key=lambda one: (one[1:], one[0] == "real", one[0])):
        cells = {
            row["ipc"]: format_accuracy(row)
            for row in here
            if (row["subject"], row["recipe"], row["precision"]) == (subject, recipe, precision)
        }
        texts = " | ".join(cells.get(ipc, "") for ipc in QUOTED_IPCS)
        lines.append(f"| {subject} | {recipe}, {precision} | {texts} |")
    return lines
