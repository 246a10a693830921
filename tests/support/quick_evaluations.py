"""A small dataset, and evaluations of it by students that take no time."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from dim.data.load import ImageSet
from dim.evaluation.evaluate import evaluate
from dim.evaluation.measure import Evaluation
from dim.evaluation.protocol import EvalProtocol, Execution

QUICK_STUDENTS: dict[str, Any] = {"epochs": 2, "width": 4, "device": "cpu", "threads": 1, "precision": "fp32"}


def striped_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes told apart by the brightness of a third of the image."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    images = rng.integers(0, 120, (count, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 130
    return images, labels


def divide_options(options: dict[str, Any]) -> tuple[EvalProtocol, Execution]:
    """A protocol and an execution from the fields of both."""
    protocol = {field.name for field in fields(EvalProtocol)} & options.keys()
    execution = options.keys() - protocol
    return (
        EvalProtocol(**{name: options[name] for name in protocol}),
        Execution(**{name: options[name] for name in execution}),
    )


def run_evaluation(bundles: Any, data: ImageSet, out: Path, options: dict[str, Any], **calls: Any) -> Evaluation:
    return evaluate(bundles, data, *divide_options(QUICK_STUDENTS | options), out=out, **calls)
