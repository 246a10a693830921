"""Labels from names."""

import time

import pytest

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.labels import find_label


def test_a_misspelt_name_among_very_many_classes_is_told_at_once() -> None:
    classes = [f"{number:05d}" + "x" * 35 for number in range(65_536)]
    start = time.process_time()
    with pytest.raises(BadValueError, match=r"The bundle has no class 'zz000x'\. Its classes are .* and 65524 more\."):
        find_label("zz000x", classes)
    assert time.process_time() - start < 2
    with pytest.raises(BadValueError, match=r"no class 'cta'; did you mean 'cat'\?"):
        find_label("cta", ["dog", "cat"])


def test_names_with_a_comma_are_listed_as_an_option_takes_them() -> None:
    with pytest.raises(BadValueError, match=r"no class 'tench'\. Its classes are \"tench, Tinca tinca\", shark\.$"):
        find_label("tench", ["tench, Tinca tinca", "shark"])
