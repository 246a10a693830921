"""Soft labels: the teacher's logits beside the images, in every format."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from set_tools import estimate_set, generate, tree
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import BundleError, EngineError
from dim.runtime.sampling.latents import index_major_order
from dim.runtime.set_formats.plan import FORMATS

COUNTS = (60, 25, 5)
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("teacher")
    path = build_tiny_bundle(folder / "b.dim", extra_files={"teacher.onnx": teacher_graph()})
    with open_bundle(path, engine="fake", threads=1) as opened:
        yield opened


def expected_logits(bundle: Bundle) -> Any:
    labels, indices = index_major_order(COUNTS)
    weight = np.random.default_rng(0).normal(0, 1.0, (64, 3)).astype(np.float32)
    return bundle.sample(labels, indices).reshape(-1, 64).astype(np.float32) @ weight


def read_logits(folder: Path, format: str) -> Any:
    if format == "parquet":
        import datasets

        loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "hf"))
        return np.asarray(loaded["logits"][:])
    if format == "webdataset":
        import webdataset

        [first] = folder.glob("train-*-000000.tar")
        url = str(first).replace("000000", "{000000..000002}")
        rows = webdataset.WebDataset(url, shardshuffle=False).to_tuple("logits.npy")
        return np.stack([np.load(io.BytesIO(row[0])) for row in rows])
    return np.concatenate([np.load(path) for path in sorted(folder.glob("logits*.npy"))])


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_logits_stand_beside_the_images(bundle: Bundle, tmp_path: Path, format: str) -> None:
    import datasets

    datasets.disable_progress_bars()
    sizes: dict[str, Any] = {} if format == "imagefolder" else {"shard_images": 40}
    generate(bundle, tmp_path / "set", counts=COUNTS, format=format, soft_labels=True, **sizes)
    logits = read_logits(tmp_path / "set", format)
    assert logits.shape == (90, 3)
    assert np.allclose(logits, expected_logits(bundle), rtol=2e-3, atol=1.0)
    assert "Soft labels, the teacher's logits as float16" in (tmp_path / "set" / "README.md").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_soft_labels_resume_to_the_same_bytes(bundle: Bundle, tmp_path: Path, format: str) -> None:
    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if done >= 60:
            raise KeyboardInterrupt

    wish: dict[str, Any] = {"counts": COUNTS, "format": format, "soft_labels": True}
    generate(bundle, tmp_path / "one", **wish)
    with pytest.raises(KeyboardInterrupt):
        generate(bundle, tmp_path / "set", progress=interrupt, **wish)
    generate(bundle, tmp_path / "set", **wish)
    assert tree(tmp_path / "set") == tree(tmp_path / "one")


def test_a_bundle_without_a_teacher(tiny_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        with pytest.raises(BundleError, match="has no teacher.onnx to make soft labels; leave them out"):
            generate(bundle, tmp_path / "set", counts=COUNTS, soft_labels=True)
    assert not (tmp_path / "set").exists()


def test_logits_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "b.dim", extra_files={"teacher.onnx": teacher_graph(scale=1e4)})
    with open_bundle(path, engine="fake", threads=1) as bundle:
        with pytest.raises(EngineError, match=r"gave logits that are not finite as float16: run  dim verify"):
            generate(bundle, tmp_path / "set", counts=COUNTS, soft_labels=True)


def test_an_estimate_counts_them(bundle: Bundle, tmp_path: Path) -> None:
    hard = estimate_set(bundle, tmp_path / "set", counts=COUNTS, format="npz")
    soft = estimate_set(bundle, tmp_path / "set", counts=COUNTS, format="npz", soft_labels=True)
    assert soft.bytes - hard.bytes == 90 * 3 * 2
