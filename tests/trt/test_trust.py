"""A compiled engine is code: only what this user built or pinned may be loaded."""

from pathlib import Path

import pytest

from dim.runtime.engines.base import parse_pins
from dim.runtime.errors import BadValueError
from dim.runtime.trt.trust import reason_not_trusted, remember_built


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_strangers_plan_is_refused_with_the_pin_that_would_load_it(own_cache: Path) -> None:
    assert reason_not_trusted("a" * 64, frozenset()) == (
        f"it is code that somebody else compiled (--trust sha256:{'a' * 64} would load it all the same)"
    )


def test_a_pinned_plan_is_trusted_and_no_other(own_cache: Path) -> None:
    pins = parse_pins(["sha256:" + "a" * 64])
    assert reason_not_trusted("a" * 64, pins) is None
    assert reason_not_trusted("b" * 64, pins) is not None


def test_what_was_built_here_is_trusted(own_cache: Path) -> None:
    remember_built("a" * 64)
    assert reason_not_trusted("a" * 64, frozenset()) is None
    assert own_cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_can_write_vouches_for_nothing(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_built("a" * 64)
    link = tmp_path / "link"
    link.symlink_to(own_cache)
    monkeypatch.setenv("DIM_CACHE", str(link))
    assert reason_not_trusted("a" * 64, frozenset()) is not None


@pytest.mark.parametrize("pin", ["", "a" * 64, "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 32])
def test_pins_of_another_form(pin: str) -> None:
    with pytest.raises(BadValueError) as refused:
        parse_pins([pin])
    assert str(refused.value) == (
        f"--trust got {pin!r}; it takes sha256: and the 64 lower-case hexadecimal digits that  sha256sum  prints for "
        "the .engine file."
    )
