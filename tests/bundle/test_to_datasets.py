"""A bundle's set as a dataset of Hugging Face's own library."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import open_bundle
from dim.runtime.errors import BadValueError, MissingExtraError
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest

# The library warns about its own insides.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("channels", [1, 3])
def test_it_holds_what_arrays_draws_in_the_same_order(tmp_path: Path, channels: int) -> None:
    import datasets

    path = build_tiny_bundle(tmp_path / "b.dim", channels=channels)
    with open_bundle(path) as bundle:
        for size in ({"ipc": 400}, {"per_class": {"one": 3, "two": 1}}):  # more than one run of the engine
            made = bundle.to_datasets(**size, seed=4, start=2, cache_dir=tmp_path / "hf")  # type: ignore[arg-type]
            images, labels = bundle.arrays(**size, seed=4, start=2)  # type: ignore[arg-type]
            assert isinstance(made, datasets.Dataset) and made["label"][:] == labels.tolist()
            assert made.features["label"].names == ["zero", "one", "two"]
            assert isinstance(made.features["image"], datasets.Image)
            found = np.stack([np.asarray(image) for image in made["image"][:]])
            assert np.array_equal(found.reshape(images.shape), images)


def test_it_lies_in_the_cache_and_the_same_call_finds_it_again(tiny_bundle: Path, tmp_path: Path) -> None:
    def files() -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.arrow")}

    with open_bundle(tiny_bundle, threads=1) as bundle:
        made = bundle.to_datasets(ipc=5, cache_dir=tmp_path)
        first = files()
        assert {Path(each["filename"]) for each in made.cache_files} == {path for path, _ in first}
        bundle.to_datasets(ipc=5, cache_dir=tmp_path)
    with open_bundle(tiny_bundle, threads=1) as again:
        again.to_datasets(ipc=5, cache_dir=tmp_path)
        assert files() == first and len(first) == 1
        again.to_datasets(ipc=5, seed=1, cache_dir=tmp_path)
        assert len(files()) == 2
    with open_bundle(tiny_bundle, threads=1, engine="fake") as other:
        other.to_datasets(ipc=5, cache_dir=tmp_path)
        assert len(files()) == 3


def test_its_files_are_those_of_the_format_parquet(tiny_bundle: Path, tmp_path: Path) -> None:
    import datasets

    with open_bundle(tiny_bundle) as bundle:
        generate(bundle, SetRequest(ipc=4, format="parquet"), tmp_path / "set")
        made = bundle.to_datasets(ipc=4, cache_dir=tmp_path / "a")
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "b"))
    encoded = datasets.Image(decode=False)
    a, b = (each.cast_column("image", encoded)["image"][:] for each in (made, loaded))
    assert [row["bytes"] for row in a] == [row["bytes"] for row in b]


def test_what_cannot_be(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bundle(tiny_bundle) as bundle:
        with pytest.raises(BadValueError):
            bundle.to_datasets(cache_dir=tmp_path)
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError) as caught:
            bundle.to_datasets(ipc=1, cache_dir=tmp_path)
    assert str(caught.value) == (
        "The package 'datasets' is not installed and is needed to make a Hugging Face dataset: "
        "run  pip install 'dim-distill[hf]'"
    )
