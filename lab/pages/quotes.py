"""What others claim for CIFAR-10, beside what the harness measures: for lab/all-results.md."""

from __future__ import annotations

from collections.abc import Sequence

from dim.evaluation.table import NOT_RUN, PUBLISHED_EPOCHS, Row, format_accuracy
from dim.students.recipes import CONDENSATION

ABSTRACT = {"convnet3": 72.6, "resnet18": 75.1, "resnet18-half": 75.1}
"""CIFAR-10 at ten images per class in the abstract of arXiv 2303.04707; its code halves the width of ResNet-18."""
QUOTE = (
    "The paper's abstract (arXiv 2303.04707) claims 72.6 % with ConvNet-3 and 75.1 % with ResNet-18 at ten images per "
    "class. It does not say how many steps, and so how many images, its IPC stands for; the reference code trains a "
    "student for 1,000 epochs of fresh images, as `stream` does, and its ResNet-18 has half the width. No generator "
    "can be expected to teach more than real images at equal steps, so that ceiling stands beside the claim. A first "
    "look at it, before this harness and with one seed (ConvNet-3 of width 128, the JPEG copy, 128,000 real images, as "
    "many as the code shows at ten images per class): 67.3 % by the published student recipe, 73.1 % by one cycle of "
    "0.06 with smoothed labels."
)

QUOTED_SETS = {
    "random real images": (14.4, 26.0, 43.4),
    "DM": (26.0, 48.9, 63.0),
    "NCFM": (49.5, 71.8, 77.4),
}
"""What a ConvNet-3 learns on CIFAR-10 from one set of 1, 10 and 50 images per class, as the NCFM paper quotes it."""
QUOTED_IPCS = (1, 10, 50)
QUOTE_SETS = (
    "One fixed set, beside what the NCFM paper (arXiv 2502.20653) quotes for ConvNet-3 and sets whose pixels are "
    "stored, each method with students of its own. The code of distribution matching (DM) trains those of the recipe "
    "`condensation`; NCFM's cuts every stored image into four, each enlarged, so its students see four times as many "
    "images, and its training is another. Each of those sets was made for its size; ours are the first images of one "
    "bundle, so the set of one lies in that of ten."
)

Setting = tuple[str, int, str]
"""The students' recipe, epochs and precision: what the rows of one table have in common."""


def quote_abstract(name: str, rows: Sequence[Row], main: Setting | None) -> list[str]:
    """Put the abstract's figures beside what real images at equal steps reach."""
    claimed = "CIFAR-10" if name == "cifar10" else "CIFAR-10 itself; these are other images"
    lines = [
        QUOTE,
        "",
        f"| network | student recipe | the abstract ({claimed}) | generated, `stream`, IPC 10 "
        "| real at equal steps, IPC 10 | generated, IPC 50 | real at equal steps, IPC 50 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    shape = {"width": None, "mode": "stream", "labels": "hard", "epochs": PUBLISHED_EPOCHS}
    ours = [row for row in rows if str(row["subject"]).startswith("generated") or row["source"] == "real"]
    here = [row for row in ours if all(row[key] == value for key, value in shape.items()) and row["arch"] in ABSTRACT]
    measured = {row["recipe"] for row in here if row["source"] == "bundle" and row["ipc"] in (10, 50)}
    recipes = dict.fromkeys(("published", main[0] if main else "chosen on the hold-out", *sorted(measured)))
    newest_last = sorted(here, key=lambda row: str(row["date"]))
    for arch, claim in ABSTRACT.items():
        for recipe in recipes:
            found: dict[tuple[str, int], str] = {}
            for row in newest_last:
                if (row["recipe"], row["arch"]) == (recipe, arch):
                    bundle = str(row["subject"]).removeprefix("generated") if row["source"] == "bundle" else ""
                    found[row["source"], row["ipc"]] = format_accuracy(row) + bundle
            texts = [found.get((source, ipc), NOT_RUN) for ipc in (10, 50) for source in ("bundle", "real")]
            lines.append(f"| {arch} | {recipe} | {claim} | {' | '.join(texts)} |")
    return lines


def quote_sets(name: str, rows: Sequence[Row]) -> list[str]:
    """Put small sets of other methods beside ours, by every recipe that was given its 1,000 epochs."""
    shape = {"arch": "convnet3", "width": None, "mode": "fixed", "labels": "hard", "epochs": PUBLISHED_EPOCHS}
    here = [row for row in rows if all(row[key] == value for key, value in shape.items()) and row["ipc"] in QUOTED_IPCS]
    others = "" if name == "cifar10" else ", CIFAR-10 itself"
    lines = [
        QUOTE_SETS,
        "",
        f"| one set of | student recipe | {' | '.join(f'IPC {ipc}' for ipc in QUOTED_IPCS)} |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {method}, quoted{others} | | {' | '.join(map(str, figures))} |"
            for method, figures in QUOTED_SETS.items()
        ),
    ]
    planned = [] if any(row["recipe"] == CONDENSATION.name for row in here) else [("generated", CONDENSATION.name, "")]
    found = dict.fromkeys((row["subject"], row["recipe"], row["precision"]) for row in here)
    for subject, recipe, precision in [*sorted(found, key=lambda one: (one[1:], one[0] == "real")), *planned]:
        cells = {
            row["ipc"]: format_accuracy(row)
            for row in here
            if (row["subject"], row["recipe"], row["precision"]) == (subject, recipe, precision)
        }
        words = f"{recipe}, {precision}" if precision else recipe
        lines.append(f"| {subject} | {words} | {' | '.join(cells.get(ipc, NOT_RUN) for ipc in QUOTED_IPCS)} |")
    return lines
