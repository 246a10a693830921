"""`SetRequest`: checked once, the same plan for everybody who asks alike, and bundle by bundle what it means there."""

import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import BadValueError
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest, describe_engine, name_options


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.mark.parametrize(
    ("wish", "counts"),
    [
        ({"ipc": 4}, (4, 4, 4)),
        ({"ipc": 4, "classes": ["one"]}, (0, 4, 0)),
        ({"ipc": 4, "classes": [2, "one"]}, (0, 4, 4)),
        ({"ipc": 4, "classes": "two"}, (0, 0, 4)),
        ({"per_class": {"two": 3, "zero": 1}}, (1, 0, 3)),
        ({"per_class": (1, 0, 3)}, (1, 0, 3)),
        ({"total": 12}, (2, 4, 6)),
        ({"ratio": 0.1}, (1, 2, 3)),
    ],
)
def test_sizes_become_counts(bundle: Bundle, wish: dict[str, Any], counts: tuple[int, ...]) -> None:
    plan = SetRequest(format="npz", seed=9, **wish).plan(bundle, describe_engine(bundle.engine))
    assert (plan.counts, plan.seed, plan.format, plan.engine.name) == (counts, 9, "npz", "fake")


def test_options_are_named_only_where_they_can_be_typed(bundle: Bundle, tmp_path: Path) -> None:
    plan = SetRequest(per_class=(3, 0, 1)).plan(bundle, describe_engine(bundle.engine))
    assert name_options(plan, bundle) == "--per-class zero=3,two=1"
    assert name_options(replace(plan, content_id="0" * 64), bundle) is None
    assert name_options(replace(plan, counts=(1, 2**32 - 1, 3), classes=("a" * 90, "b" * 90, "c" * 90)), bundle) is None
    with open_bundle(build_tiny_bundle(tmp_path / "pets.dim", classes=("cat, black", "dog")), engine="fake") as pets:
        plan = SetRequest(per_class=(7, 1), format="npz").plan(pets, describe_engine(pets.engine))
        assert name_options(plan, pets) is None
        assert name_options(replace(plan, counts=(2, 0)), pets) == "--ipc 2 --class 'cat, black' --format npz"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "Say the size of the set by exactly one of `ipc`, `ratio`, `total` and `per_class`; none was given."),
        ({"ipc": 1, "encoders": 65}, "`encoders` is 65; it must lie between 1 and 64."),
        ({"ipc": 1, "seed": 2**64}, "The seed is 18446744073709551616; it must lie between 0 and 2**64 - 1."),
        ({"ipc": 1, "format": "gif"}, "There is no format 'gif'; there are imagefolder, npz, npy, parquet, "
         "webdataset."),
        ({"ipc": 1, "shard_bytes": 9}, "The format imagefolder has no shards; leave out their size, or choose another "
         "format."),
        ({"per_class": (1,), "classes": ["one"]}, "`per_class` already names its classes; leave out `classes`."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_without_a_bundle(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        SetRequest(**wish)
    assert str(caught.value) == message


def test_it_is_frozen_and_travels(bundle: Bundle) -> None:
    request = SetRequest(ipc=3, format="npz")
    with pytest.raises(FrozenInstanceError):
        request.ipc = 4  # type: ignore[misc]
    engine = describe_engine(bundle.engine)
    assert pickle.loads(pickle.dumps(request)).plan(bundle, engine) == request.plan(bundle, engine)
    with pytest.raises(BadValueError, match="The seed is -1"):
        replace(request, seed=-1)


def test_one_request_serves_two_bundles(bundle: Bundle, tmp_path: Path) -> None:
    request = SetRequest(ipc=2, format="npz")
    pets = build_tiny_bundle(tmp_path / "pets.dim", classes=("cat", "dog"))
    with open_bundle(pets, engine="fake") as other:
        assert generate(other, request, tmp_path / "pets").images == 4
    assert generate(bundle, request, tmp_path / "digits").images == 6
