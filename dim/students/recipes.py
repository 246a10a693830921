"""Recipes of students: everything about their training except the images, the same for generated and real ones.

A recipe is named, read from a `recipe.json`, or chosen on images held out of the training split.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dim.policy import default_policy, parse_policy
from dim.runtime.errors import BadValueError, BundleError, DataError
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import from_plain

CHOICE_NAME = "recipe.json"
"""The file of a recipe that was chosen."""
MAX_CHOICE_BYTES = 2**22


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained, whatever it is trained on."""

    name: str
    """What tables call it."""
    lr: float
    """Peak learning rate of SGD."""
    schedule: str = "onecycle"
    """`constant`; `step`, a tenth of it in the second half; or `onecycle`: linear warm-up over the first fifth of the
    steps, then linear decay to zero."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights, as in torch's SGD."""
    label_smoothing: float = 0.0
    """Part of the target spread evenly over all classes; hard labels only."""
    temperature: float = 1.0
    """Divides the logits of student and teacher; soft labels only."""
    batch_size: int = 64
    """Images per step; the last batch of an epoch may be smaller."""
    augment: str = "none"
    """Policy of `dim.augment`."""
    fill: str = "black"
    """What comes into view at the borders: `black` pixels, or the `mean` of the set (augmenting after normalising)."""

    def __post_init__(self) -> None:
        for field, low, high in [
            ("lr", 1e-8, 100.0),
            ("momentum", 0.0, 0.9999),
            ("weight_decay", 0.0, 1.0),
            ("label_smoothing", 0.0, 0.9),
            ("temperature", 0.1, 100.0),
            ("batch_size", 1, 65_536),
        ]:
            value = getattr(self, field)
            if not low <= value <= high:
                raise BadValueError(f"Recipe.{field} is {value}; it must lie between {low:g} and {high:g}.")
        for field, allowed in [("schedule", ("constant", "step", "onecycle")), ("fill", ("black", "mean"))]:
            if getattr(self, field) not in allowed:
                raise BadValueError(
                    f"Recipe.{field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}."
                )
        parse_policy(self.augment)

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step 0 <= `step` < `steps`."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr if 2 * step < steps else 0.1 * self.lr
        warmup = max(1.0, 0.2 * steps)
        return self.lr * min((step + 1) / warmup, (steps - step) / max(1.0, steps - warmup), 1.0)


PUBLISHED = Recipe(name="published", lr=0.01, schedule="constant", augment="color_crop", fill="mean")
"""The student of the DiM code: SGD 0.01 constant, momentum 0.9, weight decay 5e-4, colour and crop, batch 64."""

REFERENCE_BATCHES = {1: 10, 10: 25, 50: 50}
"""Images per step of the DiM code's own scripts, by images per class."""

CONDENSATION = Recipe(
    name="condensation",
    lr=0.01,
    schedule="step",
    batch_size=256,
    augment="color|crop|cutout|flip|scale|rotate",
    fill="mean",
)
"""The student of the Dataset Condensation code for DSA (arXiv 2102.08259) and DM (arXiv 2110.04181): SGD 0.01, a tenth
of it in the second half, batch 256, one kind of augmentation per batch. That code trains for one epoch more, keeps the
first rate for two epochs longer and begins the second with a new optimiser. `resolve_recipe` leaves out the horizontal
flip where it may change the class."""

DEFAULT = Recipe(name="default", lr=0.06, label_smoothing=0.1)
"""One cycle with label smoothing; `resolve_recipe` adds the augmentation that suits the dataset."""


def resolve_recipe(recipe: str | Recipe, data_name: str, ipc: int = 10) -> Recipe:
    """Return the recipe of that name, with the dataset's augmentation.

    Args:
        recipe: `default`; `published`; `reference`, the same in the batches of the DiM code; `condensation`;
            `condensation-all`, which is the same with every kind of augmentation at once; or a finished recipe, which
            is returned as it is.
        data_name: the dataset's name; decides whether images may be flipped horizontally (see `default_policy`).
        ipc: images per class; decides the batch of `reference`.

    Raises:
        BadValueError: there is no recipe of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe == "published":
        return PUBLISHED
    if recipe == "reference":
        smaller = [size for size in REFERENCE_BATCHES if size <= ipc]
        return replace(PUBLISHED, name="reference", batch_size=REFERENCE_BATCHES[max(smaller)])
    if recipe == "default":
        return replace(DEFAULT, augment=default_policy(data_name))
    if recipe in ("condensation", "condensation-all"):
        flips = "flip" in default_policy(data_name)
        kinds = [kind for kind in CONDENSATION.augment.split("|") if flips or kind != "flip"]
        return replace(CONDENSATION, name=recipe, augment=("_" if recipe == "condensation-all" else "|").join(kinds))
    raise BadValueError(
        f"There is no student recipe '{recipe}'; there are default, published, reference, condensation and "
        "condensation-all."
    )


def read_recipe(path: Path) -> Recipe:
    """Read the recipe that `dim.evaluation.choose_recipe` chose, so that one choice serves many evaluations.

    Args:
        path: a `recipe.json`.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        described = strict_json.parse(path.read_bytes(), str(path), MAX_CHOICE_BYTES)
        return from_plain(Recipe, described["chosen"], str(path), defaults=True)
    except (OSError, BundleError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not the {CHOICE_NAME} of an earlier choice: make one with  dim eval --recipe holdout"
        ) from error
