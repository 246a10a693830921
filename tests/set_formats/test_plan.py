"""The plan of a set: JSON round trip, parts, names of folders."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN

from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.set_formats.file_sizes import bound_file_bytes
from dim.runtime.set_formats.plan import FORMATS, MAX_PARTS, Plan, choose_part_images
from dim.runtime.storage.records import from_plain, to_plain


def read_plan(block: object) -> Plan:
    plan = from_plain(Plan, block, "dataset.json", error=OutputError)
    plan.check()
    return plan


def test_parts_cover_the_set_once() -> None:
    assert (PLAN.images, PLAN.parts) == (7, 3)
    assert [PLAN.span(part) for part in range(3)] == [(0, 3), (3, 6), (6, 7)]
    labels, indices = PLAN.samples(0, 7)
    assert labels.tolist() == [0, 1, 0, 1, 0, 0, 0]
    assert indices.tolist() == [3, 3, 4, 4, 5, 6, 7]


def test_json_round_trip() -> None:
    assert read_plan(json.loads(json.dumps(to_plain(PLAN)))) == PLAN


@given(
    st.sampled_from(sorted(to_plain(PLAN))),
    st.none()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.none()),
)
def test_a_malformed_plan_is_refused_or_valid(field: str, value: object) -> None:
    block = to_plain(PLAN) | {field: value}
    try:
        plan = read_plan(block)
    except OutputError as error:
        assert str(error).startswith("dataset.json")
    else:
        assert to_plain(plan) == block and plan.parts >= 1


@pytest.mark.parametrize("block", [None, [], "plan", {}, {"seed": 1}])
def test_no_plan_at_all(block: object) -> None:
    with pytest.raises(OutputError, match="dataset.json"):
        read_plan(block)


def test_difference_names_the_field() -> None:
    assert PLAN.describe_difference(PLAN) is None
    assert PLAN.describe_difference(replace(PLAN, seed=8)) == "seed 7 instead of 8"
    assert PLAN.describe_difference(replace(PLAN, seed=8), ignore=["seed"]) is None
    other = replace(PLAN.engine, device="gpu", batch=256)
    assert (
        PLAN.describe_difference(replace(PLAN, engine=other))
        == "engine device cpu instead of gpu and engine batch None instead of 256"
    )
    assert (
        PLAN.describe_difference(replace(PLAN, content_id="1" * 64))
        == "content_id 000000000000... instead of 111111111111..."
    )


@given(
    st.sampled_from(FORMATS), st.integers(1, 10**10), st.sampled_from([8, 32, 128]), st.sampled_from([None, 64, 256])
)
def test_default_parts_are_bounded(format: str, images: int, px: int, batch: int | None) -> None:
    size = choose_part_images(format, images, (px, px, 3), batch)
    if format in ("npz", "npy"):
        assert size == images
    else:
        assert size * px * px * 3 <= 2**28 + 256 * px * px * 3 or size <= images / MAX_PARTS + 256
        assert batch is None or size % batch == 0


def test_shards_by_images_and_bytes() -> None:
    assert choose_part_images("parquet", 1000, (8, 8, 3), None, shard_images=100) == 100
    assert choose_part_images("parquet", 50, (8, 8, 3), None, shard_images=100) == 50
    limit = bound_file_bytes("parquet", 100, (8, 8, 3), ("cat", "dog"), False)
    cut = choose_part_images("parquet", 10**6, (8, 8, 3), None, shard_bytes=limit, classes=("cat", "dog"))
    assert cut == 100
    with pytest.raises(BadValueError, match="not both"):
        choose_part_images("npz", 10, (8, 8, 3), None, 1, 1)
    with pytest.raises(BadValueError, match="A shard of 0 images cannot be made"):
        choose_part_images("npz", 10, (8, 8, 3), None, shard_images=0)
    with pytest.raises(BadValueError, match="does not hold one image"):
        choose_part_images("npz", 10, (8, 8, 3), None, shard_bytes=10)
    with pytest.raises(BadValueError, match="more than 100,000 shards"):
        choose_part_images("npz", 10**9, (8, 8, 3), None, shard_images=1)


def test_another_reason_for_the_same_engine_is_no_other_plan() -> None:
    plan = PLAN
    other = replace(plan, engine=replace(plan.engine, reason="the only one that works here"))
    assert plan.describe_difference(other) is None and plan == other
    assert read_plan(to_plain(other)).engine.reason == "the only one that works here"
    slower = replace(other, engine=replace(other.engine, batch=128))
    assert plan.describe_difference(slower) == "engine batch None instead of 128"
