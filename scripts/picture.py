#!/usr/bin/env python3
"""Draw docs/pipeline.png: from a dataset through the compiled generator to training sets, with what it really draws."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from dim.chart_style import GENERATED, INK, make_figure, to_png
from dim.runtime import open_bundle
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.inspection.labelled_grid import draw_labelled_grid

STEPS = (
    ("labelled images", "60,000 of MNIST, 47 MB"),
    ("dim distill", "PyTorch: conditional GAN,\nthen matching a pool of classifiers"),
    ("dim export", "a bundle: ONNX in fp32, fp16\nand int8, {size} together"),
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
    figure, (top, bottom) = make_figure(2, across=1, width=10, heights=(1.5, 5.1))
    draw_steps(top, size)
    shape = (rows, COLUMNS, *images.shape[1:])
    grid = draw_labelled_grid(images.reshape(shape), bundle.classes, min_image_px=56)
    bottom.imshow(grid, interpolation="lanczos")
    bottom.set_title("Drawn by the bundle of MNIST that comes with dim", fontsize=10, color=INK)
    bottom.axis("off")
    (Path(__file__).parents[1] / "docs" / "pipeline.png").write_bytes(to_png(figure))


def draw_steps(axes: Axes, size: str) -> None:
    """Draw the steps as boxes from left to right, with arrows between them.

    Args:
        axes: where to draw.
        size: of the bundle's ONNX files, as text.
    """
    axes.axis("off")
    axes.set(xlim=(0, len(STEPS)), ylim=(0, 1))
    for number, (title, text) in enumerate(STEPS):
        box = {"boxstyle": "round,pad=0.5", "facecolor": "none", "edgecolor": GENERATED if number else INK}
        axes.text(number + 0.5, 0.75, title, ha="center", va="center", fontsize=12, weight="bold", color=INK, bbox=box)
        axes.text(number + 0.5, 0.2, text.format(size=size), ha="center", va="center", fontsize=9, color=INK)
        if number:
            arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.6}
            axes.annotate("", (number + 0.18, 0.75), (number - 0.1, 0.75), arrowprops=arrow)


if __name__ == "__main__":
    draw_pipeline()
