"""docs/security.md names tests that exist and figures that the code has."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    assert len(named) > 30 and named - existing == set()


def test_every_file_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:tests|scripts|benchmarks|lab|constraints)/[\w.*/]+)`", PAGE):
        assert list(ROOT.glob(path.rstrip("/"))), path
    for path in re.findall(r"\]\(([\w/]+\.md)\)", PAGE):
        assert (ROOT / "docs" / path).is_file(), path


def test_the_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| .+ \| ([\d,]+) ?(\w*) \| `([\w.]+)\.(\w+)` \|$", PAGE, re.MULTILINE)
    assert len(rows) > 30
    for number, unit, module, constant in rows:
        assert int(number.replace(",", "")) * UNITS[unit] == getattr(importlib.import_module(module), constant), (
            constant
        )


def test_every_limit_of_source_data_is_on_the_page() -> None:
    limits = importlib.import_module("dim.data.limits")
    # Sizes that users may ask for, and amounts kept for speed, are no limits of a file.
    others = {"MIN_IMAGE_PX", "MAX_IMAGE_PX", "MAX_KEPT_BYTES", "MAX_QUEUED_BYTES", "LARGE_IMAGE_PIXELS"}
    others |= {"MAX_CLASS_NAME_BYTES"}
    for name in vars(limits):
        assert name.startswith("_") or name in others or f"`dim.data.limits.{name}`" in PAGE, name
