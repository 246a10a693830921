"""Tables and Parquet files as pandas writes them, its column of row numbers among them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import image_file, random_images, write_folder

from dim.data.load import ImageSet, load_data

pandas = pytest.importorskip("pandas", reason="pandas comes with the library datasets, of the extra hf")
IMAGES = random_images(12, 8, 3)
FRAME = pandas.DataFrame({"file": [f"{n:03d}.png" for n in range(12)], "label": ["cat", "dog"] * 6})


def _check(data: ImageSet) -> None:
    assert data.classes == ("cat", "dog")
    for label in range(2):
        found = [*data.train_images[data.train_labels == label], *data.test_images[data.test_labels == label]]
        assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in IMAGES[label::2])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("labels.csv", {}),
        ("labels.csv", {"index": False}),
        ("labels.tsv", {"sep": "\t"}),
        ("labels.csv", {"sep": ";", "encoding": "utf-8-sig"}),
        ("labels.jsonl", {"orient": "records", "lines": True}),
        ("labels.json", {"orient": "records"}),
    ],
)
def test_a_table_beside_images(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "set", {f"{n:03d}.png": image_file(image) for n, image in enumerate(IMAGES)})
    write = FRAME.to_json if "json" in name else FRAME.to_csv
    write(folder / name, **options)
    _check(load_data(folder))


@pytest.mark.parametrize("kind", ["text", "category", "integer"])
def test_parquet(tmp_path: Path, kind: str) -> None:
    labels = FRAME["label"].astype("category") if kind == "category" else FRAME["label"]
    if kind == "integer":
        labels = pandas.Series(np.arange(12) % 2, dtype="int8")
    frame = pandas.DataFrame({"image": [image_file(image) for image in IMAGES], "label": labels})
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "set.parquet")
    data = load_data(tmp_path / "set.parquet")
    if kind == "integer":
        assert data.classes == ("0", "1") and len(data.train_labels) + len(data.test_labels) == 12
    else:
        _check(data)
