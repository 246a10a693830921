"""Choosing the student's recipe on a hold-out cut from the training split, never on the test split.

The candidates are compared on real images alone, so the choice can favour the controls and never the bundle; a bundle
has seen the hold-out while it was distilled, and could not be judged on it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dim.data.holdout import holdout_mask
from dim.data.image_set import ImageSet
from dim.evaluation.evaluate import evaluate
from dim.evaluation.jobs import EvalProgress
from dim.evaluation.table import aggregate
from dim.runtime.errors import BadValueError, DataError, OutputError
from dim.runtime.storage.atomic import replace_file
from dim.students.recipes import Recipe, resolve_recipe

CHOICE_NAME = "recipe.json"


def split_holdout(data: ImageSet, fraction: float = 0.1, seed: int = 0) -> ImageSet:
    """Cut a hold-out from the training split, the same part of every class, and forget the test split.

    Args:
        data: the dataset.
        fraction: part of every class's training images, above 0 and below 1; at least one image.
        seed: of the cut.

    Returns:
        The dataset `<name> (hold-out)`, whose test split is the hold-out and whose training split is the rest.

    Raises:
        BadValueError: the fraction is out of range.
        DataError: a class has a single image, which cannot be on both sides.
    """
    if not 0 < fraction < 1:
        raise BadValueError(f"fraction is {fraction}; it must lie between 0 and 1.")
    for name, count in zip(data.classes, data.class_counts, strict=True):
        if count < 2:
            raise DataError(f"{data.name}: class '{name}' has {count} training images; a hold-out needs two.")
    held = holdout_mask(data.train_labels, len(data.classes), fraction, seed)
    return ImageSet(
        name=f"{data.name} (hold-out)",
        classes=data.classes,
        train_images=data.train_images[~held],
        train_labels=data.train_labels[~held],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
        licence=data.licence,
        note=f"{data.note}; tested on {int(held.sum())} training images held out (seed {seed})".lstrip("; "),
    )


def candidates(data_name: str) -> list[Recipe]:
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


def choose_recipe(
    data: ImageSet,
    recipes: Sequence[Recipe] | None = None,
    *,
    out: Path,
    ipc: int = 10,
    modes: Sequence[str] = ("fixed", "stream"),
    archs: Sequence[str] = ("convnet3",),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 1000,
    time_limit_s: float | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[EvalProgress], None] = lambda event: None,
    **options: Any,
) -> Recipe:
    """Train students on real images by every recipe and return the one with the best mean on the hold-out.

    Args:
        data: the dataset.
        recipes: to choose from; None for `candidates`.
        out: folder of the results; `recipe.json` holds the choice and the accuracy of every recipe.
        ipc, modes, archs, seeds, epochs: as in `dim.evaluation.evaluate.evaluate`; every mode and network counts alike.
        time_limit_s: for all recipes together.
        say, progress: as there.
        options: its other arguments (`width`, `device`, `precision`, `threads`, `jobs`).

    Returns:
        The chosen recipe, to be given to every student of an evaluation.

    Raises:
        as `split_holdout` and `evaluate`.
    """
    if recipes is None:
        recipes = candidates(data.name)
    holdout = split_holdout(data)
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    rows = []
    for recipe in recipes:
        # The augmentation follows the dataset's own name, so the recipe is passed as it is.
        results = evaluate(
            None,
            holdout,
            out=out,
            modes=modes,
            ipcs=(ipc,),
            archs=archs,
            seeds=seeds,
            epochs=epochs,
            recipe=recipe,
            time_limit_s=None if deadline is None else max(0.0, deadline - time.monotonic()),
            progress=progress,
            **options,
        )
        measured = aggregate(results)
        mean = sum(row["accuracy_mean"] for row in measured) / len(measured)
        rows.append({"recipe": asdict(recipe), "mean": round(mean, 4), "rows": measured})
        say(f"Hold-out accuracy of the recipe {recipe.name}: {mean:.2f} %.")
    best = max(range(len(recipes)), key=lambda index: float(rows[index]["mean"]))
    chosen = recipes[best]
    described = {"chosen": asdict(chosen), "on": holdout.note, "candidates": rows}
    try:
        replace_file(out / CHOICE_NAME, (json.dumps(described, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"The choice in {out} cannot be written: {error.strerror}.") from error
    say(f"Chosen on the hold-out: the recipe {chosen.name}.")
    return chosen


def read_recipe(path: Path) -> Recipe:
    """Read the recipe that `choose_recipe` chose, so that one choice serves many evaluations.

    Args:
        path: a `recipe.json`.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        return Recipe(**json.loads(path.read_bytes())["chosen"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not the {CHOICE_NAME} of an earlier choice: make one with  dim eval --recipe holdout"
        ) from error
