"""What users write on the command line is read, or refused in a sentence."""

import pytest

from dim.cli.parsing import parse_bytes, parse_classes, parse_per_class, parse_shard
from dim.runtime.errors import BadValueError


def test_parsing() -> None:
    assert parse_per_class("cat=100, dog=20") == {"cat": 100, "dog": 20}
    assert parse_per_class("a=b=3") == {"a=b": 3}
    assert parse_classes("cat, dog") == ["cat", "dog"]
    assert parse_classes('"a, b", c ,"say ""hi"""') == ["a, b", "c", 'say "hi"']
    assert parse_classes('5" nail,b"') == ['5" nail', 'b"']
    assert parse_per_class('"a, b"=3, "c, d=4"') == {"a, b": 3, "c, d": 4}
    assert parse_shard("0/4") == (0, 4)
    assert [parse_bytes(text) for text in ("500", "64MB", "1.5 GiB", "2k" + "b")] == [500, 64 * 10**6, 3 * 2**29, 2000]


@pytest.mark.parametrize("text", ["", "cat", "cat=", "=3", "cat=1.5", "cat=-1", "cat=1,cat=2", "cat=1,"])
def test_bad_per_class_text(text: str) -> None:
    with pytest.raises(BadValueError):
        parse_per_class(text)


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "-1/2", "a/b", "1/2/3"])
def test_bad_shard_text(text: str) -> None:
    with pytest.raises(BadValueError):
        parse_shard(text)


@pytest.mark.parametrize("text", ["", "MB", "1XB", "0", "-3", "1/0", "nan"])
def test_bad_byte_sizes(text: str) -> None:
    with pytest.raises(BadValueError):
        parse_bytes(text)
