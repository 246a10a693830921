"""A dataset of stripes and a bundle that draws its classes, for every test of the evaluation."""

from pathlib import Path

import pytest
from quick_evaluations import striped_images
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle

from dim.data.load import ImageSet


@pytest.fixture(scope="module")
def data() -> ImageSet:
    train, test = striped_images(90, 0), striped_images(60, 1)
    return ImageSet(
        name="stripes",
        classes=("zero", "one", "two"),
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        licence="CC0-1.0",
        note="drawn for a test",
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny.dim", extra_files={"teacher.onnx": teacher_graph()}
    )
