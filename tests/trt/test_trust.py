"""A compiled engine is code: only what this user built or pinned may be loaded."""

import os
from pathlib import Path

import pytest

from dim.runtime.engines.base import parse_pins
from dim.runtime.errors import BadValueError, DimError
from dim.runtime.storage.private_cache import cache_dir
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


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_cache_that_was_open_to_others_is_not_used(own_cache: Path, mode: int) -> None:
    """Closing it would turn what others left there into this user's word."""
    remember_built("a" * 64)
    own_cache.chmod(mode)
    assert reason_not_trusted("a" * 64, frozenset()) is not None
    assert own_cache.stat().st_mode & 0o7777 == mode
    with pytest.raises(
        DimError, match=r"Others could write in the cache .* remove it, or set DIM_CACHE to a folder of"
    ):
        cache_dir()


def test_a_note_that_others_could_write_vouches_for_nothing(own_cache: Path) -> None:
    """Left there while the cache was open; its owner has closed the cache since, but not what lies in it."""
    remember_built("a" * 64)
    for place in (own_cache / "built-engines", own_cache / "built-engines" / ("a" * 64)):
        before = place.stat().st_mode
        place.chmod(before | 0o022)
        assert reason_not_trusted("a" * 64, frozenset()) is not None
        place.chmod(before)
    assert reason_not_trusted("a" * 64, frozenset()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_note_of_somebody_else_vouches_for_nothing(own_cache: Path) -> None:
    remember_built("a" * 64)
    os.chown(own_cache / "built-engines" / ("a" * 64), 65534, 65534)
    assert reason_not_trusted("a" * 64, frozenset()) is not None
