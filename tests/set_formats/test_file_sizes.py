"""No file of a set is larger than the limit that was asked for, whatever the format, the shape and the class names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import PLAN
from set_tools import generate, tree
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import BadValueError
from dim.runtime.set_formats import file_sizes as part_bytes
from dim.runtime.set_formats.file_sizes import bound_file_bytes, fit_images
from dim.runtime.set_formats.part import Batch
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.storage.local_store import LocalStore
from dim.runtime.storage.place import make_place

SHARDED = ("npz", "npy", "parquet", "webdataset")
NAMES = {
    "two": ("cat", "dog"),
    "long": tuple(f"{k} " + "ß" * 90 + '"' for k in range(7)),
    "many": tuple(f"n{k:08d}" for k in range(1000)),
}


def written(folder: Path, plan: Plan, images_NHWC: np.ndarray) -> int:
    """Write a plan's only part and return the bytes of its largest file."""
    store = LocalStore(folder)
    make_place(store)
    for name in find_format(plan.format).folders(plan):
        store.make_folder(name)
    writer = find_format(plan.format).open(plan, store, 0)
    labels, indices = plan.samples(0, plan.images)
    scores = np.random.default_rng(1).normal(size=(plan.images, len(plan.classes))).astype(np.float16)
    batch = Batch(images=images_NHWC, labels=labels, indices=indices, scores=scores if plan.soft_labels else None)
    writer.write(writer.encode(batch))
    record = writer.finish()
    assert record.bytes == sum(entry.bytes for entry in record.files)
    return max(entry.bytes for entry in record.files)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("format", SHARDED)
def test_noise_keeps_below_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, names: str, soft: bool
) -> None:
    # Row groups of three, so that a small part has many.
    monkeypatch.setattr(part_bytes, "ROW_GROUP_IMAGES", 3)
    classes, random = NAMES[names], np.random.default_rng(0)
    for at, (count, (height, width, channels)) in enumerate(
        [(1, (1, 1, 1)), (1, (8, 8, 3)), (40, (1, 1, 1)), (40, (5, 9, 3)), (31, (28, 28, 1)), (7, (200, 150, 3))]
    ):
        counts = tuple(len(range(k, count, len(classes))) for k in range(len(classes)))
        plan = Plan(
            **(vars(PLAN) | {"classes": classes, "counts": counts, "format": format, "part_images": count})
            | {"height": height, "width": width, "channels": channels, "teacher": "0" * 64 if soft else ""}
        )
        images = random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
        size = written(tmp_path / str(at), plan, images)
        bound = bound_file_bytes(format, count, (height, width, channels), classes, soft)
        assert size <= bound, (count, height, size, bound)
        if format in ("npz", "npy"):
            assert bound <= size + 1024


@pytest.mark.parametrize("format", SHARDED)
def test_as_many_images_as_the_limit_lets_in(format: str) -> None:
    shape, classes = (8, 8, 3), ("cat", "dog")
    for images in (1, 2, 77, 1024, 1025, 5000):
        bound = bound_file_bytes(format, images, shape, classes, True)
        most = fit_images(bound, 10**6, format, shape, classes, True)
        assert most >= images and bound_file_bytes(format, most, shape, classes, True) <= bound
        assert fit_images(bound - 1, 10**6, format, shape, classes, True) < images or format == "webdataset"
        assert fit_images(bound, images, format, shape, classes, True) == images


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("bundle") / "b.dim"
    build_tiny_bundle(path, extra_files={"teacher.onnx": teacher_graph()})
    with open_bundle(path, engine="fake", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("format", SHARDED)
def test_no_file_of_a_set_exceeds_the_limit(bundle: Bundle, tmp_path: Path, format: str, soft: bool) -> None:
    shape = (bundle.manifest.height, bundle.manifest.width, bundle.manifest.channels)
    least = bound_file_bytes(format, 1, shape, bundle.classes, soft)
    for limit in (least, least + 1, least + 500, 3 * least, 40_000):
        wish: dict[str, Any] = {"counts": (9, 6, 2), "format": format, "soft_labels": soft}
        generate(bundle, tmp_path / str(limit), shard_bytes=limit, **wish)
        names = {"README.md", "dataset.json", "croissant.json", "classes.json"}
        files = {name: len(data) for name, data in tree(tmp_path / str(limit)).items() if name not in names}
        assert files and max(files.values()) <= limit, (limit, files)
    with pytest.raises(BadValueError) as caught:
        generate(bundle, tmp_path / "small", shard_bytes=least - 1, **wish)
    assert str(caught.value) == (
        f"A shard of {least - 1:,} bytes does not hold one image, whose {format} file may need {least:,}."
    )
    assert not (tmp_path / "small").exists()
