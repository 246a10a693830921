"""The page of the sampling contract: its program and the library give the test vectors; JavaScript has tests too."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.accepted_file import read_accepted
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.sampling.accepted import permute_places
from dim.runtime.sampling.counts import resolve_counts
from dim.runtime.sampling.latents import _box_muller, draw_latents, order_slice, permutation
from dim.runtime.sampling.philox import FILTERED_SAMPLING, PLAIN_SAMPLING
from dim.runtime.sampling.stream import StreamPlan
from tests.sampling.test_counts import Info, Source
from tests.support.philox_words import philox4x32

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "concepts" / "sampling.md").read_text()
VECTORS = json.loads((ROOT / "tests" / "golden" / "sampling.json").read_text())["1"]
FILTERED = json.loads((ROOT / "tests" / "golden" / "sampling.json").read_text())["2"]
PROGRAM: dict[str, Any] = {"__name__": "docs"}
exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1], PROGRAM)


def cases(part: str) -> Callable[[Any], Any]:
    listed = (VECTORS | FILTERED)[part]
    return pytest.mark.parametrize("case", listed, ids=range(len(listed)))


def integers(words: list[str]) -> list[int]:
    return [int(word, 16) for word in words]


def bits(values: Any) -> list[str]:
    return [struct.pack(">f", value).hex() for value in values]


def floats(words: list[str]) -> list[float]:
    return [struct.unpack(">f", bytes.fromhex(word))[0] for word in words]


def test_the_page_is_of_these_versions_and_explains_every_part() -> None:
    assert (PLAIN_SAMPLING, FILTERED_SAMPLING) == (1, 2) and "This page defines versions 1 and 2." in PAGE
    before, after = PAGE.split("## Test vectors")
    for text, vectors in ((after, VECTORS), (before.split("## Accepted candidates: version 2")[1], FILTERED)):
        assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(vectors)


@cases("philox")
def test_words(case: dict) -> None:
    key, counter, words = integers(case["key"]), integers(case["counter"]), integers(case["words"])
    assert list(PROGRAM["philox"](key, counter)) == words
    assert philox4x32((key[0], key[1]), np.array(counter, np.uint32)).tolist() == words


@cases("box_muller")
def test_normals(case: dict) -> None:
    words = integers(case["words"])
    assert PROGRAM["box_muller"](*words) == pytest.approx(case["normals"], rel=1e-14, abs=1e-14)
    drawn = np.empty((1, 1, 4), np.float32)
    _box_muller(np.array([*words, *words], np.uint64).reshape(4, 1, 1), np.empty((4, 1, 1)), 1.0, drawn)
    assert bits(drawn.ravel()) == bits([*case["normals"]] * 2)


@cases("latents")
def test_latents(case: dict) -> None:
    seed, size, std = int(case["seed"]), case["latent_dim"], case["latent_std"]
    assert bits(PROGRAM["draw_latents"](seed, case["class"], case["index"], size, std)) == case["float32"]
    assert bits(draw_latents(seed, [case["class"]], [case["index"]], size, std)[0]) == case["float32"]


@cases("fixed_latents")
def test_fixed_latents(case: dict, tmp_path: Path) -> None:
    seed, std = int(case["seed"]), case["latent_std"]
    fixed = [[floats(row) for row in rows] for rows in case["latents"]]
    drawn = [PROGRAM["draw_latents"](seed, label, i, 5, std, fixed) for label, i in case["samples"]]
    assert [bits(row) for row in drawn] == case["rows"]
    latents = {"latents.npz": write_fixed_latents(np.array(fixed, np.float32))}
    bundle = Bundle(build_tiny_bundle(tmp_path / "fixed.dim", latent_dim=5, latent_std=std, extra_files=latents))
    labels, indices = zip(*case["samples"], strict=True)
    assert [bits(row) for row in bundle.latents(labels, indices, seed)] == case["rows"]
    as_stream = bundle.latents(labels, indices, seed, "stream")
    assert [bits(row) for row in as_stream] == [
        bits(PROGRAM["draw_latents"](seed, label, i, 5, std)) for label, i in case["samples"]
    ]


@cases("accepted_file")
def test_accepted_file(case: dict) -> None:
    file, numbers = bytes.fromhex(case["file"]), case["numbers"]
    assert PROGRAM["read_accepted"](file) == (int(case["key"]), numbers)
    accepted = read_accepted(file, len(numbers))
    assert accepted.key == int(case["key"])
    assert [part.tolist() for part in np.split(accepted.numbers, accepted.starts[1:-1])] == numbers


@cases("places")
def test_places(case: dict) -> None:
    seed, label, number, count = int(case["seed"]), case["class"], case["round"], case["count"]
    found = [PROGRAM["find_place"](seed, label, number, position, count) for position in case["positions"]]
    assert found == case["places"]
    positions = np.array(case["positions"])
    same = [np.full(len(positions), value) for value in (label, number, count)]
    assert permute_places(seed, same[0], same[1], positions, same[2]).tolist() == case["places"]


@cases("accepted_latents")
def test_accepted_latents(case: dict, tmp_path: Path) -> None:
    file, seed, label, index = bytes.fromhex(case["file"]), int(case["seed"]), case["class"], case["index"]
    size, std = case["latent_dim"], case["latent_std"]
    assert bits(PROGRAM["draw_accepted"](file, seed, label, index, size, std)) == case["float32"]
    bundle = Bundle(build_filtered(tmp_path, file, latent_dim=size, latent_std=std))
    for use in ("fixed", "stream"):
        assert bits(bundle.latents([label], [index], seed, use)[0]) == case["float32"]


def build_filtered(folder: Path, file: bytes, **more: Any) -> Path:
    classes = [f"class {k}" for k in range(int.from_bytes(file[8:12], "little"))]
    return build_tiny_bundle(folder / "filtered.dim", classes=classes, extra_files={"accepted.bin": file}, **more)


@cases("counts")
def test_counts(case: dict) -> None:
    source, chosen = case["class_counts"], case["classes"]
    info = Info(tuple(f"class {k}" for k in range(len(source))), Source(tuple(source)))
    wish = {name: case[name] for name in ("ipc", "total", "per_class") if name in case}
    wish |= {"ratio": float(case["ratio"])} if "ratio" in case else {}
    assert list(resolve_counts(info, classes=chosen, **wish)) == case["counts"]
    if wish.keys() <= {"ratio", "total"}:
        size = {name: case[name] for name in ("ratio", "total") if name in case}
        assert PROGRAM["share"](source, range(len(source)) if chosen is None else chosen, **size) == case["counts"]


@cases("orders")
def test_orders(case: dict) -> None:
    samples = [tuple(sample) for sample in case["samples"]]
    assert PROGRAM["order_set"](case["counts"], case["start"]) == samples
    labels, indices = order_slice(case["counts"], 0, len(samples) + 1)
    assert list(zip(labels.tolist(), (indices + case["start"]).tolist(), strict=True)) == samples


@cases("permutations")
def test_permutations(case: dict) -> None:
    seed, epoch = int(case["seed"]), int(case["epoch"])
    assert PROGRAM["permute"](seed, epoch, case["n"]) == case["order"]
    assert permutation(seed, epoch, case["n"]).tolist() == case["order"]


@cases("streams")
def test_streams(case: dict) -> None:
    batches = [[tuple(sample) for sample in batch] for batch in case["batches"]]
    fields = {name: case[name] for name in ("labels", "ipc", "batch_size", "start_epoch", "epochs", "shard")}
    fields |= {"seed": int(case["seed"])}
    assert list(PROGRAM["stream"](**fields)) == batches
    plan = StreamPlan(**fields | {"labels": tuple(case["labels"]), "shard": tuple(case["shard"])})
    drawn = [list(zip(labels.tolist(), indices.tolist(), strict=True)) for labels, indices in plan.batches()]
    assert drawn == batches


def test_the_images_of_the_shipped_bundle() -> None:
    """JavaScript compares its pixels with this file."""
    with np.load(ROOT / "tests" / "golden" / "mnist.npz", allow_pickle=False) as golden:
        labels, indices, images = golden["labels"], golden["indices"], golden["images"]
    assert len(labels) == 24
    with open_bundle("mnist", engine="onnxruntime-cpu", precision="fp32") as bundle:
        drawn = bundle.sample(labels, indices, seed=7)
    assert np.abs(drawn.astype(int) - images.astype(int)).max() <= 1
