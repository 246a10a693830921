"""`croissant.json` is valid Croissant 1.1 and reads the set back through mlcroissant; the card says what is there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from set_tools import generate
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.sampling.latents import index_major_order
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.sets.card import MAX_CLASSES_LISTED, write_card
from dim.runtime.sets.journal import read_set
from dim.runtime.storage.local_store import LocalStore

COUNTS = (9, 4, 0)
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sharded", [False, True])
def test_mlcroissant_validates_and_reads(tiny_bundle: Path, tmp_path: Path, format: str, sharded: bool) -> None:
    import mlcroissant

    if sharded and format == "imagefolder":
        sharded = False
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, tmp_path / "set", counts=COUNTS, format=format, shard_images=5 if sharded else None)
        dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "set" / "croissant.json"))
        assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
        assert not dataset.metadata.ctx.issues.errors
        # A date would make the same plan give other bytes.
        assert [issue for issue in dataset.metadata.ctx.issues.warnings if "datePublished" not in issue] == []
        classes = [(row["classes/label"], row["classes/name"]) for row in dataset.records("classes")]
        assert classes == [(0, b"zero"), (1, b"one"), (2, b"two")] or classes == [(0, "zero"), (1, "one"), (2, "two")]
        if format not in ("npz", "npy"):
            rows = list(dataset.records("images"))
            labels, indices = index_major_order(COUNTS)
            images = bundle.sample(labels, indices)
            expected = sorted((int(k), image.tobytes()) for k, image in zip(labels, images, strict=True))
            found = sorted((label_of(bundle, row["images/label"]), pixels(row["images/image"])) for row in rows)
            assert found == expected


def label_of(bundle: Bundle, value: Any) -> int:
    text = value.decode() if isinstance(value, bytes) else value
    return bundle.classes.index(text) if isinstance(text, str) else int(text)


def pixels(image: Any) -> bytes:
    return np.asarray(image.convert("L")).tobytes()


def test_card_names_what_is_there(tiny_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, tmp_path / "set", counts=COUNTS, seed=3, format="webdataset", shard_images=5)
        card = (tmp_path / "set" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")
    assert "13 synthetic images of 8x8 pixels in 2 classes, drawn from the generator 'tiny' by dim." in card
    assert "| 0 | zero | 9 |\n| 1 | one | 4 |\n\n" in card and "two" not in card
    assert re.search(r"train-[0-9a-f]{8}-\{000000\.\.000002\}\.tar", card)
    assert f"content id `{bundle.manifest.content_id}`" in card and "seed 3" in card
    assert "engine: fake (fake 1, cpu, fp32)" in card


def test_card_of_many_classes_and_of_names_that_would_be_markup(tmp_path: Path) -> None:
    classes = ("a|b*c", *(f"class {k}" for k in range(MAX_CLASSES_LISTED + 9)))
    path = build_tiny_bundle(tmp_path / "b.dim", classes=classes)
    with open_bundle(path, engine="fake") as bundle:
        generate(bundle, tmp_path / "set", counts=[1] * len(classes), format="npz")
        found = read_set(LocalStore(tmp_path / "set"))
        assert found is not None
        card = write_card(bundle.manifest, found.plan).decode()
    assert "| 0 | a\\|b\\*c | 1 |" in card and "and 10 more, see `dataset.json`" in card


@pytest.mark.parametrize("format", ["webdataset", "parquet", "imagefolder"])
def test_sets_that_are_read_one_after_the_other_are_each_their_own(
    tiny_bundle: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlcroissant keeps what it unpacks by the archive's name, for ever."""
    import mlcroissant
    from mlcroissant._src.operation_graph.operations import extract

    monkeypatch.setattr(extract, "EXTRACT_PATH", type(extract.EXTRACT_PATH)(tmp_path / "extracted"))
    names = set()
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        for at, wish in enumerate(({"seed": 0}, {"seed": 1}, {"start": 5}, {"seed": 1, "counts": (1, 1, 1)})):
            counts, seed, start = (wish.get("counts", COUNTS), wish.get("seed", 0), wish.get("start", 0))
            generate(bundle, tmp_path / str(at), counts=counts, seed=seed, start=start, format=format)
            dataset = mlcroissant.Dataset(jsonld=str(tmp_path / str(at) / "croissant.json"))
            labels, indices = index_major_order(counts)
            expected = sorted(image.tobytes() for image in bundle.sample(labels, indices + start, seed=seed))
            assert sorted(pixels(row["images/image"]) for row in dataset.records("images")) == expected
            names.add(dataset.metadata.name)
    assert len(names) == 4
