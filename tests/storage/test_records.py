"""Records: dataclasses to plain JSON data and back, and one sentence for each way in which the data is malformed."""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.errors import BadValueError, BundleError, EngineError, OutputError
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import FieldError, from_plain, parse_versioned, show_value, to_plain


@dataclass(frozen=True)
class Part:
    path: str
    size_bytes: int

    def __post_init__(self) -> None:
        if self.size_bytes < 0:
            raise FieldError("size_bytes", self.size_bytes, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    name: str
    seed: int
    std: float
    checked: bool
    format: Literal["npz", "png"]
    gpu: str | None
    counts: tuple[int, ...]
    batch: tuple[int, int, int]
    capabilities: tuple[tuple[int, int], ...]
    first: Part
    second: Part | None
    parts: tuple[Part, ...]
    files: Mapping[str, Part]
    shares: Mapping[str, float | None]
    config: Any
    limit: int | Literal["auto"] = "auto"
    date: str = field(default_factory=lambda: "today")

    def __post_init__(self) -> None:
        if not self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise FieldError("batch", self.batch, "least, optimum and most in this order")


PLAIN: dict[str, Any] = {
    "name": "digits",
    "seed": 7,
    "std": 0.5,
    "checked": True,
    "format": "npz",
    "gpu": None,
    "counts": [1, 2],
    "batch": [1, 8, 64],
    "capabilities": [[8, 9], [9, 0]],
    "first": {"path": "a", "size_bytes": 1},
    "second": None,
    "parts": [{"path": "b", "size_bytes": 2}],
    "files": {"c": {"path": "c", "size_bytes": 3}},
    "shares": {"x": 1.5, "y": None},
    "config": {"any": [1, {"thing": None}]},
    "limit": "auto",
    "date": "1999",
}


def read(value: object, **options: Any) -> Drawing:
    return from_plain(Drawing, value, "dataset.json", **options)


def test_a_record_is_read_and_written_in_the_order_of_its_fields() -> None:
    record = read(PLAIN)
    assert record.counts == (1, 2) and record.batch == (1, 8, 64) and record.capabilities == ((8, 9), (9, 0))
    assert record.first == Part("a", 1) and record.parts == (Part("b", 2),) and record.files["c"] == Part("c", 3)
    assert list(to_plain(record)) == list(PLAIN) and to_plain(record) == PLAIN
    assert read({**PLAIN, "second": {"path": "s", "size_bytes": 0}, "limit": 3}).second == Part("s", 0)


def test_an_integer_stays_one_where_a_number_is_expected() -> None:
    assert strict_json.write_canonical(to_plain(read({**PLAIN, "std": 1}))["std"]) == b"1"


def test_defaults_count_only_where_they_are_asked_for() -> None:
    short = {key: value for key, value in PLAIN.items() if key not in ("limit", "date")}
    assert read(short, defaults=True).date == "today"
    with pytest.raises(BundleError, match=r"^dataset\.json lacks the field limit\.$"):
        read(short)
    with pytest.raises(BundleError, match=r"^dataset\.json lacks the field seed\.$"):
        read({key: value for key, value in short.items() if key != "seed"}, defaults=True)


MALFORMED: list[tuple[Any, str]] = [
    ([], " is []; it must be an object."),
    ({**PLAIN, "more": 1}, " has the unknown field more."),
    ({**PLAIN, "a\x1b[2J": 1}, " has the unknown field a?[2J."),
    ({**PLAIN, "name": 3}, "'s field name is 3; it must be text."),
    ({**PLAIN, "name": None}, "'s field name is None; it must be text."),
    ({**PLAIN, "seed": True}, "'s field seed is True; it must be an integer."),
    ({**PLAIN, "seed": 1.0}, "'s field seed is 1.0; it must be an integer."),
    ({**PLAIN, "std": "a\x1b" + "b" * 100}, f"'s field std is 'a\\x1b{'b' * 78}'; it must be a number."),
    ({**PLAIN, "std": False}, "'s field std is False; it must be a number."),
    ({**PLAIN, "std": math.nan}, "'s field std is nan; it must be a number."),
    ({**PLAIN, "checked": 1}, "'s field checked is 1; it must be true or false."),
    ({**PLAIN, "format": "gif"}, "'s field format is 'gif'; it must be one of 'npz', 'png'."),
    ({**PLAIN, "gpu": 0}, "'s field gpu is 0; it must be text or null."),
    ({**PLAIN, "limit": "all"}, "'s field limit is 'all'; it must be an integer or 'auto'."),
    ({**PLAIN, "counts": "12"}, "'s field counts is '12'; it must be a list."),
    ({**PLAIN, "counts": [1, "2"]}, "'s field counts[1] is '2'; it must be an integer."),
    ({**PLAIN, "batch": [1, 2]}, "'s field batch is [1, 2]; it must be a list of 3."),
    ({**PLAIN, "batch": [9, 8, 7]}, "'s field batch is (9, 8, 7); it must be least, optimum and most in this order."),
    ({**PLAIN, "capabilities": [[8, None]]}, "'s field capabilities[0][1] is None; it must be an integer."),
    ({**PLAIN, "first": []}, "'s field first is []; it must be an object."),
    ({**PLAIN, "first": {"path": "a"}}, " lacks the field first.size_bytes."),
    ({**PLAIN, "second": 1}, "'s field second is 1; it must be an object or null."),
    (
        {**PLAIN, "parts": [{"path": "", "size_bytes": -1}]},
        "'s field parts[0].size_bytes is -1; it must be at least 0.",
    ),
    ({**PLAIN, "files": {"c": {**PLAIN["first"], "x": 1}}}, " has the unknown field files['c'].x."),
    ({**PLAIN, "files": []}, "'s field files is []; it must be an object."),
    ({**PLAIN, "files": {1: PLAIN["first"]}}, f"'s field files is { ({1: PLAIN['first']}) }; it must be an object."),
    ({**PLAIN, "shares": {"x": "y"}}, "'s field shares['x'] is 'y'; it must be a number or null."),
]


@pytest.mark.parametrize(("value", "sentence"), MALFORMED)
def test_what_is_malformed_is_named_in_one_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(value)
    assert str(caught.value) == f"dataset.json{sentence}"
    with pytest.raises(OutputError) as caught_too:
        read(value, error=OutputError, advice="use --overwrite to start anew.")
    assert str(caught_too.value) == f"dataset.json{sentence[:-1]}: use --overwrite to start anew."


@dataclass(frozen=True)
class Picky:
    value: int

    def __post_init__(self) -> None:
        if self.value == 1:
            raise BadValueError("Picky.value is 1; it must be another number.")
        if self.value == 2:
            raise EngineError("No engine has the value 2.")


@dataclass(frozen=True)
class Holder:
    held: Picky


def test_other_errors_of_a_record_keep_their_sentence() -> None:
    with pytest.raises(BadValueError, match=r"^Picky\.value is 1; it must be another number\.$"):
        from_plain(Picky, {"value": 1}, "config", error=BadValueError)
    with pytest.raises(OutputError, match=r"^config: Picky\.value is 1; it must be another number\.$"):
        from_plain(Picky, {"value": 1}, "config", error=OutputError)
    with pytest.raises(OutputError, match=r"^config: held: Picky\.value is 1; it must be another number\.$"):
        from_plain(Holder, {"held": {"value": 1}}, "config", error=OutputError)
    with pytest.raises(EngineError, match=r"^No engine has the value 2\.$"):
        from_plain(Picky, {"value": 2}, "config", error=OutputError)


def test_a_field_error_of_a_record_built_in_code_is_a_sentence_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"^The field size_bytes is -2; it must be at least 0\.$") as caught:
        Part("x", -2)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_only_dataclasses_with_known_hints_are_records() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="A record cannot hold the type <class 'complex'>"):
        from_plain(Odd, {"value": 1}, "x")
    with pytest.raises(TypeError, match="dict is not a dataclass"):
        to_plain({})


def test_a_shown_value_is_short_and_harmless() -> None:
    assert show_value("\x1b[2J" * 99) == repr("\x1b[2J" * 20)
    assert len(show_value(["\x9b"] * 99)) == 80 and show_value(["\x9b"] * 99).isprintable()


NUMBERS = st.one_of(st.integers(-(2**64), 2**64), st.floats(allow_nan=False, allow_infinity=False))
PARTS = st.builds(Part, st.text(st.characters(codec="utf-8")), st.integers(0, 2**64))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(st.characters(codec="utf-8"))),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(st.characters(codec="utf-8")), inner)),
    max_leaves=8,
)


@given(st.data())
def test_every_record_comes_back_from_its_json(data: st.DataObject) -> None:
    record = replace(
        read(PLAIN),
        seed=data.draw(st.integers(-(2**64), 2**64)),
        std=data.draw(NUMBERS),
        gpu=data.draw(st.none() | st.text(st.characters(codec="utf-8"))),
        counts=tuple(data.draw(st.lists(st.integers(0, 9)))),
        second=data.draw(st.none() | PARTS),
        parts=tuple(data.draw(st.lists(PARTS, max_size=3))),
        files=data.draw(st.dictionaries(st.text(st.characters(codec="utf-8")), PARTS, max_size=3)),
        shares=data.draw(st.dictionaries(st.text(st.characters(codec="utf-8")), NUMBERS | st.none(), max_size=3)),
        config=data.draw(ANY),
        limit=data.draw(st.just("auto") | st.integers(0, 9)),
    )
    written = strict_json.write_canonical(to_plain(record))
    again = read(strict_json.parse(written, "dataset.json", len(written)))
    assert again == record and strict_json.write_canonical(to_plain(again)) == written


@given(st.sampled_from(sorted(PLAIN)), ANY)
def test_any_value_in_any_field_is_read_or_refused_in_a_sentence(name: str, value: Any) -> None:
    try:
        assert to_plain(read({**PLAIN, name: value}))[name] == value
    except BundleError as error:
        assert str(error).startswith("dataset.json") and str(error).isprintable()


def parse(block: object) -> dict[str, Any]:
    data = json.dumps(block).encode()
    return parse_versioned(
        data, "The plan", version=2, max_bytes=99, error=OutputError, advice="use --overwrite to start anew."
    )


def test_a_versioned_object_is_read_without_its_version() -> None:
    assert parse({"format_version": 2, "seed": 1}) == {"seed": 1}


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ([], " is []; it must be an object: use --overwrite to start anew."),
        ({}, " lacks the field format_version: use --overwrite to start anew."),
        ({"format_version": 1}, "'s field format_version is 1; it must be 2: use --overwrite to start anew."),
        ({"format_version": True}, "'s field format_version is True; it must be 2: use --overwrite to start anew."),
        ({"format_version": "3"}, "'s field format_version is '3'; it must be 2: use --overwrite to start anew."),
        (
            {"format_version": 3},
            " has format version 3 and was made by a newer dim; this one reads version 2: "
            "run  pip install --upgrade dim-distill",
        ),
        (math.nan, " holds the number NaN, which JSON does not have: use --overwrite to start anew."),
        ("a" * 99, " has 101 bytes; at most 99 are read: use --overwrite to start anew."),
    ],
)
def test_a_versioned_object_is_refused_in_one_sentence(block: object, sentence: str) -> None:
    with pytest.raises(OutputError) as caught:
        parse(block)
    assert str(caught.value) == f"The plan{sentence}"
