"""The conclusion of an evaluation in words, and its limits from the test set and the number of students."""

import math
from collections.abc import Sequence

from dim.evaluation.archive import LOSSLESS
from dim.evaluation.results import Row
from dim.evaluation.table import PUBLISHED_EPOCHS, format_bytes, network_name

NETWORK_NAMES = {
    "convnet3": "ConvNet-3",
    "resnet10": "ResNet-10",
    "resnet18": "ResNet-18",
    "vgg11": "VGG-11",
    "densenet": "DenseNet",
    "mlp": "MLP",
}
KIND = ("mode", "ipc", "arch", "width", "labels", "recipe", "epochs")
"""Fields of rows that may be compared."""
CONFIDENCE = 1.96
"""Standard errors on both sides of a difference that chance stays within 95 times of 100."""


def answer_in_words(rows: Sequence[Row]) -> list[str]:
    """Say in sentences what the images of one dataset are worth; none where no student saw generated images."""
    main = find_main_row(rows)
    if main is None:
        return []
    name = NETWORK_NAMES.get(main["arch"], network_name(main["arch"], None))
    width = f" of width {main['width']}" if main["width"] else ""
    first = f"A {name}{width} trained on these images reaches {main['accuracy_mean']:.1f} %"
    if real := find_control(rows, main, "real"):
        than = "as many random real images" if main["mode"] == "fixed" else "real images for as many steps"
        first += f", {_compare(main, real)} {than}"
    shown = "in every epoch" if main["mode"] == "stream" else "in all"
    sentences = [f"{first} ({main['ipc']:,} images per class {shown}, {_count_students(main)})."]
    archive = find_control(rows, main, "archive")
    if archive and archive["archive"]:
        coded = archive["archive"]
        how = "lossless WebP" if coded["codec"] == LOSSLESS else f"{coded['codec'].upper()}, quality {coded['quality']}"
        sentences.append(
            f"The best archive of real images in the generator's {format_bytes(main['data_bytes'])} ({how}, "
            f"{coded['images_per_class']:,} per class) gives {archive['accuracy_mean']:.1f} %: the generator is "
            f"{_compare(main, archive)} it."
        )
    return sentences + _answer_few(rows, main)


def _answer_few(rows: Sequence[Row], main: Row) -> list[str]:
    """Say what few real images are worth alone and with generated ones; nothing where that was not measured."""
    pairs = []
    for alone in (row for row in rows if row["source"] == "few" and _is_like(row, main, KIND)):
        both = find_control(rows, alone, "mixed", (*KIND, "real_percent"))
        pairs += [(alone, both)] if both else []
    if not pairs:
        return []
    percents = _list([f"{alone['real_percent']:g}" for alone, _ in pairs])
    reached = [_list([f"{row['accuracy_mean']:.1f}" for row in column]) for column in zip(*pairs, strict=True)]
    return [
        f"On {percents} % of the real images it reaches {reached[0]} %, with generated images in every batch "
        f"{reached[1]} %."
    ]


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + [words[-1]])


def list_warnings(rows: Sequence[Row]) -> list[str]:
    """List what the test set, the number of students or their training cannot carry, as sentences."""
    main = find_main_row(rows)
    if main is None:
        return []
    warnings = []
    real = find_control(rows, main, "real")
    margin = chance_margin(main["accuracy_mean"], main["test_images"])
    gap = abs(main["accuracy_mean"] - real["accuracy_mean"]) if real else None
    if margin > 1 or (gap is not None and gap < margin):
        warnings.append(
            f"The test split has {main['test_images']:,} images: differences below {margin:.1f} points may be chance."
        )
    if main["accuracy_std"] is None:
        warnings.append("One student per row: how much students differ is not known; --seeds 3 tells.")
    elif real and gap is not None and real["accuracy_std"] is not None:
        error = math.hypot(*(row["accuracy_std"] / math.sqrt(len(row["seeds"])) for row in (main, real)))  # type: ignore[operator]
        if gap < 2 * error:
            warnings.append(f"The difference from real images is within what {_count_students(main)} differ by.")
    if main["epochs"] < PUBLISHED_EPOCHS:
        warnings.append(
            f"A short look: {main['epochs']:,} of the {PUBLISHED_EPOCHS:,} published epochs; --preset full takes all."
        )
    if diverged := sum(row["diverged"] for row in rows):
        warnings.append(f"{diverged} students diverged: their last loss was not finite.")
    return warnings


def chance_margin(accuracy: float, test_images: int) -> float:
    """Return the points by which two accuracies on so many test images differ by chance, 95 times of 100 at most."""
    # Half an image more keeps an accuracy of 100 % from promising that chance is nothing.
    share = min(max(accuracy / 100, 0.5 / test_images), 1 - 0.5 / test_images)
    return 100 * CONFIDENCE * math.sqrt(2 * share * (1 - share) / test_images)


def find_main_row(rows: Sequence[Row]) -> Row | None:
    """Find the row that answers best: of the first bundle, streamed, hard labels, ten images per class if measured."""
    generated = [row for row in rows if row["source"] == "bundle"]
    order = {"stream": 0, "fixed": 1}
    return min(
        generated,
        key=lambda row: (row["labels"] != "hard", order.get(row["mode"], 2), row["ipc"] != 10),
        default=None,
    )


def find_control(rows: Sequence[Row], main: Row, source: str, keys: Sequence[str] = (*KIND, "precision")) -> Row | None:
    """Find the first row of a source whose students are trained as those of another row."""
    return next((row for row in rows if row["source"] == source and _is_like(row, main, keys)), None)


def _is_like(row: Row, other: Row, keys: Sequence[str]) -> bool:
    return all(row.get(key) == other.get(key) for key in keys)


def _compare(row: Row, other: Row) -> str:
    gap = round(row["accuracy_mean"] - other["accuracy_mean"], 1)
    if gap == 0:
        return "as good as"
    return f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}"


def _count_students(row: Row) -> str:
    return "one student" if len(row["seeds"]) == 1 else f"{len(row['seeds'])} students"
