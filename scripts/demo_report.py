#!/usr/bin/env python3
"""The end of `make demo`: a classifier without PyTorch, a picture of real beside generated digits, and one table.

    python scripts/demo_report.py demo

Real digits are the 500 of MNIST's test split in js/demo/test-digits.npz; generated ones come from the bundle that is
part of the package.
"""

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import MLPClassifier

from dim.runtime import open_bundle
from dim.runtime.bundle import Bundle
from dim.runtime.inspection.labelled_grid import draw_labelled_grid
from dim.runtime.inspection.preview import write_png

DIGITS = Path(__file__).parents[1] / "js" / "demo" / "test-digits.npz"
MNIST_GZIP_BYTES = 9_912_422
"""Of the official train-images-idx3-ubyte.gz, 60,000 images."""
PICTURE_PX = 1200
COLUMNS = 9


def train_without_torch(bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Train a scikit-learn classifier on 60,000 images of the bundle's stream; return its accuracy on real digits."""
    classifier = MLPClassifier((256,), random_state=0)
    for drawn, drawn_labels in bundle.stream(ipc=10, batch_size=100, epochs=600):
        classifier.partial_fit(drawn.reshape(100, -1) / 255.0, drawn_labels, classes=np.arange(10))
    return float(classifier.score(images.reshape(len(images), -1) / 255.0, labels))


def draw_picture(bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64], path: Path) -> None:
    """Draw real digits beside generated ones, a row per class, with the sizes of both."""
    real = np.stack([images[labels == label][:COLUMNS] for label in range(10)])
    drawn = bundle.sample(np.repeat(np.arange(10), COLUMNS), np.tile(np.arange(COLUMNS), 10), use="stream")
    generated = drawn.reshape(10, COLUMNS, *drawn.shape[1:])
    left = draw_labelled_grid(
        real, bundle.classes, min_image_px=56, title=f"real: 60,000 images in {MNIST_GZIP_BYTES / 1e6:.1f} MB (gzip)"
    )
    size = bundle.manifest.files["generator.int8.onnx"].size_bytes
    title = f"generated: any number of images from {size / 1e6:.1f} MB (int8)"
    right = draw_labelled_grid(generated, [""] * 10, min_image_px=56, title=title)
    picture = np.full((left.shape[0], PICTURE_PX, 4), 255, np.uint8)
    margin = (PICTURE_PX - left.shape[1] - right.shape[1]) // 2
    for part, begin in ((left, margin), (right, margin + left.shape[1])):
        opacity = part[..., 3:] / 255.0
        place = picture[:, begin : begin + part.shape[1], :3]
        place[:] = (part[..., :3] * opacity + place * (1 - opacity)).round()
    write_png(path, picture)


def count_images(folder: Path) -> int:
    """Return how many images a set holds, by its `dataset.json`."""
    return sum(json.loads((folder / "dataset.json").read_text())["plan"]["counts"])


def find_accuracy(folder: Path, subject: str) -> str:
    """Return an evaluation's accuracy of one kind of images, in percent."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return next(f"{row['accuracy_mean']:.1f} %" for row in rows if row["subject"].split(",")[0] == subject)


def print_table(demo: Path, bundle: Bundle, accuracy: float) -> None:
    """Print what the demo showed: sizes, ratios and accuracies side by side."""
    table = Table(title="What the demo showed", title_justify="left")
    for name in ("", "real images", "from a bundle"):
        table.add_column(name, overflow="fold")
    size = bundle.manifest.files["generator.int8.onnx"].size_bytes
    table.add_row("MNIST, bytes", f"{MNIST_GZIP_BYTES / 1e6:.1f} MB for 60,000", f"{size / 1e6:.1f} MB for any number")
    table.add_row("MNIST, a scikit-learn classifier", "", f"{accuracy:.1%} of 500 real test digits, no PyTorch")
    sizes = " and ".join(f"{count_images(demo / name):,}" for name in ("tenth", "fivefold"))
    table.add_row("digits 8x8, images", "1,438", f"{sizes} from one bundle")
    evaluated = demo / "eval"
    real, generated = find_accuracy(evaluated, "real"), find_accuracy(evaluated, "generated")
    table.add_row("digits 8x8, a ConvNet-3 after equal steps", real, f"{generated}, each image new")
    Console().print(table)


def main() -> None:
    """Train, draw and print."""
    demo = Path(sys.argv[1])
    with np.load(DIGITS) as digits:
        images, labels = digits["images"], digits["labels"]
    with open_bundle("mnist", device="cpu", precision="int8") as bundle:
        accuracy = train_without_torch(bundle, images, labels)
        assert "torch" not in sys.modules
        draw_picture(bundle, images, labels, demo / "real-and-generated.png")
        print_table(demo, bundle, accuracy)


if __name__ == "__main__":
    main()
