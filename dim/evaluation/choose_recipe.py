"""Chooses the student's recipe on a hold-out of the training split, never on the test split.

Recipes are compared on real images only, so the choice can favour the controls, but not the bundle. A bundle was
distilled from the hold-out too, so it cannot be compared there.
"""

from dataclasses import asdict, replace
from pathlib import Path

from dim.data.holdout import holdout_mask
from dim.data.image_set import ImageSet
from dim.evaluation.files import write_json
from dim.evaluation.measure import Evaluation, Say, measure
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.execution.large_images import select_images
from dim.runtime.errors import DataError, DimError
from dim.runtime.progress.show import Progress, ignore_progress
from dim.students.recipes import CHOICE_NAME, Recipe, resolve_recipe


def split_holdout(data: ImageSet) -> ImageSet:
    """Cut a tenth of every class's training images off as a hold-out, one at least, and forget the test split.

    Returns:
        The dataset `<name> (hold-out)`, whose test split is the hold-out and whose training split is the rest.

    Raises:
        DataError: a class has a single image, which cannot be on both sides.
    """
    for name, count in zip(data.classes, data.class_counts, strict=True):
        if count < 2:
            raise DataError(f"{data.name}: class '{name}' has {count} training images; a hold-out needs two.")
    held = holdout_mask(data.train_labels, len(data.classes), fraction=0.1, seed=0)
    return ImageSet(
        name=f"{data.name} (hold-out)",
        classes=data.classes,
        train_images=select_images(data.train_images, ~held),
        train_labels=data.train_labels[~held],
        test_images=select_images(data.train_images, held),
        test_labels=data.train_labels[held],
        licence=data.licence,
        note=f"{data.note}; tested on {int(held.sum())} training images held out (seed 0)".lstrip("; "),
    )


def list_candidates(data_name: str) -> list[Recipe]:
    """List the recipes to choose from: the published one, that of the Dataset Condensation code and the same with every
    kind of augmentation at once, and the default at three learning rates, with and without label smoothing."""
    default = resolve_recipe("default", data_name)
    grid = [
        replace(default, name=f"onecycle-{lr:g}-smooth-{smoothing:g}", lr=lr, label_smoothing=smoothing)
        for lr in (0.03, 0.06, 0.12)
        for smoothing in (0.0, 0.1)
    ]
    named = [resolve_recipe(name, data_name) for name in ("published", "condensation", "condensation-all")]
    return [*named, *grid]


class TimeOverError(DimError):
    """A time limit ended an evaluation before its last student."""

    def __init__(self, evaluation: Evaluation) -> None:
        left, trained = evaluation.students_left, len(evaluation.results)
        super().__init__(
            f"The time limit left {left} of {left + trained} students untrained: the same command goes on."
        )


def choose_recipe(
    data: ImageSet,
    protocol: EvalProtocol,
    execution: Execution,
    *,
    out: Path,
    deadline: float | None = None,
    say: Say = lambda sentence: None,
    progress: Progress = ignore_progress,
) -> Recipe:
    """Train students on real images by every recipe and return the one with the best mean on the hold-out.

    Args:
        protocol: of the evaluation; the first of its sizes is measured, and every mode and network counts alike.
        out: folder of the results; `recipe.json` holds the choice and the accuracy of every recipe.
        data, execution, deadline, say, progress: as in `measure`; progress is told of one recipe after another.

    Returns:
        The chosen recipe, to be given to every student of an evaluation.

    Raises:
        TimeOverError: the deadline left students untrained; the same call goes on.
        OutputError: `out` cannot be written.
        as `split_holdout`.
    """
    recipes = list_candidates(data.name)  # the augmentation follows the name, which the hold-out changes
    holdout = split_holdout(data)
    single = replace(
        protocol,
        ipcs=protocol.ipcs[:1],
        labels=("hard",),
        controls=("real",),
        whole_epochs=0,
        real_percents=(),
        quality=False,
        privacy=False,
    )
    rows = []
    for recipe in recipes:
        evaluation = measure(
            (), holdout, replace(single, recipe=recipe), execution, out, deadline=deadline, progress=progress
        )
        if not evaluation.finished:
            raise TimeOverError(evaluation)
        measured = evaluation.rows
        mean = sum(row["accuracy_mean"] for row in measured) / len(measured)
        rows.append({"recipe": asdict(recipe), "mean": round(mean, 4), "rows": measured})
        say(f"Hold-out accuracy of the recipe {recipe.name}: {mean:.2f} %.")
    best = max(range(len(recipes)), key=lambda index: float(rows[index]["mean"]))  # type: ignore[arg-type]
    chosen = recipes[best]
    described = {"chosen": asdict(chosen), "on": holdout.note, "candidates": rows}
    write_json(out / CHOICE_NAME, described, f"The choice in {out}")
    say(f"Chosen on the hold-out: the recipe {chosen.name}.")
    return chosen
