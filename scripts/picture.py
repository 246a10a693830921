#!/usr/bin/env python3
"""Draw docs/pipeline.png: from a dataset through the compiled generator to training sets, with what it really draws."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dim.runtime import open_bundle
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.inspection.preview import make_grid

STEPS = (
    ("labelled images", "60,000 of MNIST, 47 MB"),
    ("dim distill", "PyTorch: conditional GAN,\nthen matching a pool of classifiers"),
    ("dim export", "ONNX fp32, fp16 and int8: {size};\nTensorRT engines for a GPU"),
    ("dim generate", "NumPy + one engine, no PyTorch:\na set of any size, or a stream"),
)
COLUMNS = 18


def draw_pipeline() -> None:
    """Draw the picture with images of the shipped bundle, and write it."""
    with open_bundle(SHIPPED, device="cpu") as bundle:
        names = [n for n in bundle.manifest.files if n.endswith(".onnx")]
        size = f"{sum(bundle.manifest.files[n].size_bytes for n in names) / 1e6:.1f} MB"
        rows = len(bundle.classes)
        labels = np.repeat(np.arange(rows), COLUMNS)
        images = bundle.sample(labels, np.tile(np.arange(COLUMNS), rows), use="stream")
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=(1, 3.1))
    draw_steps(top, size)
    shape = (rows, COLUMNS, *images.shape[1:])
    bottom.imshow(make_grid(images.reshape(shape)), cmap="gray", interpolation="lanczos")
    bottom.set_title("Drawn by the bundle that comes with dim: one row per class", fontsize=10)
    bottom.axis("off")
    figure.savefig(Path(__file__).parents[1] / "docs" / "pipeline.png", dpi=110, metadata={"Software": None})


def draw_steps(axes: Axes, size: str) -> None:
    """Draw the steps as boxes from left to right, with arrows between them.

    Args:
        axes: where to draw.
        size: of the bundle's ONNX files, as text.
    """
    axes.axis("off")
    axes.set(xlim=(0, len(STEPS)), ylim=(0, 1))
    for number, (title, text) in enumerate(STEPS):
        box = {"boxstyle": "round,pad=0.5", "facecolor": "#eef3fb" if number else "#f6f1e7", "edgecolor": "#44608c"}
        axes.text(number + 0.5, 0.72, title, ha="center", va="center", fontsize=13, weight="bold", bbox=box)
        axes.text(number + 0.5, 0.28, text.format(size=size), ha="center", va="center", fontsize=9)
        if number:
            arrow = {"arrowstyle": "-|>", "color": "#44608c", "linewidth": 1.6}
            axes.annotate("", (number + 0.14, 0.72), (number - 0.14, 0.72), arrowprops=arrow)


if __name__ == "__main__":
    draw_pipeline()
