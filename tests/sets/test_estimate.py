"""Dry runs and the check of the free space."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from set_tools import estimate_set, generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.sets import dry_run, estimate
from dim.runtime.sets.estimate import format_bytes
from dim.runtime.storage.place import Free


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def set_free(monkeypatch: pytest.MonkeyPatch, free: int, files: int = 10**9, block: int = 1) -> None:
    for module in (estimate, dry_run):
        monkeypatch.setattr(module, "measure_free", lambda store: Free(bytes=free, files=files, block=block))


@pytest.mark.parametrize("format", FORMATS)
def test_an_estimate_is_close_and_writes_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    set_free(monkeypatch, 10**9)
    counts = (150, 100, 50)
    told = estimate_set(bundle, tmp_path / "set", counts=counts, format=format)
    assert list(tmp_path.iterdir()) == []
    assert (told.images, told.images_missing, told.resumes) == (300, 300, False)
    assert told.seconds > 0 and told.free_bytes == 10**9
    generate(bundle, tmp_path / "set", counts=counts, format=format)
    data = {name: len(raw) for name, raw in tree(tmp_path / "set").items() if not name.endswith((".json", ".md"))}
    assert sum(data.values()) == pytest.approx(told.bytes, rel=0.25)
    again = estimate_set(bundle, tmp_path / "set", counts=counts, format=format)
    assert (again.images_missing, again.resumes) == (0, True)


def test_an_estimate_of_a_half_made_set(bundle: Bundle, tmp_path: Path) -> None:
    counts = (800, 0, 0)
    generate(bundle, tmp_path / "set", counts=counts, shard=(0, 2))
    files = tree(tmp_path / "set")
    whole = estimate_set(bundle, tmp_path / "set", counts=counts)
    mine = estimate_set(bundle, tmp_path / "set", counts=counts, shard=(1, 2))
    assert whole.images_missing == mine.images_missing == 288 and mine.parts == 4
    assert tree(tmp_path / "set") == files


def test_blocks_of_the_file_system_count(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 10**9, block=4096)
    assert estimate_set(bundle, tmp_path / "set", counts=(10, 0, 0)).bytes == 10 * 4096


@pytest.mark.parametrize(
    ("counts", "format", "message"),
    [
        (
            (2**32, 0, 0),
            "imagefolder",
            "The set needs 4,294,967,296 files and the file system under {out} has room for",
        ),
        ((10**6, 0, 0), "npz", "The set needs at least 72.0 MB and 10.0 MB are free under {out}: ask for fewer images"),
        ((10**6, 0, 0), "webdataset", "The set needs at least 2.0 GB and 10.0 MB are free under {out}"),
        ((80_000, 0, 0), "parquet", "The set needs about 1"),
    ],
)
def test_a_set_larger_than_the_disk_is_refused_before_it_starts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: Any, format: str, message: str
) -> None:
    set_free(monkeypatch, 10**7)
    out = tmp_path / "set"
    for call in (generate, estimate_set):
        with pytest.raises(OutputError) as caught:
            call(bundle, out, counts=counts, format=format)
        assert message.format(out=out) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_for_the_rest(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(bundle, tmp_path / "set", counts=(600, 0, 0), shard=(0, 2))
    files = tree(tmp_path / "set")
    set_free(monkeypatch, 1000)
    with pytest.raises(OutputError, match="are free under"):
        generate(bundle, tmp_path / "set", counts=(600, 0, 0))
    assert tree(tmp_path / "set").keys() >= files.keys()


def test_what_is_replaced_counts_as_free(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(bundle, tmp_path / "set", counts=(2000, 0, 0), format="npz")
    set_free(monkeypatch, 1000)
    with pytest.raises(OutputError, match="are free under"):
        generate(bundle, tmp_path / "set", counts=(3000, 0, 0), format="npz", overwrite=True)
    assert (tmp_path / "set" / "train.npz").exists()
    assert generate(bundle, tmp_path / "set", counts=(1500, 0, 0), format="npz", overwrite=True).complete


def test_bytes_for_people() -> None:
    assert [format_bytes(n) for n in (0, 999, 1500, 123_456, 2.5e9, 3e18)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "123 kB",
        "2.5 GB",
        "3,000 PB",
    ]
