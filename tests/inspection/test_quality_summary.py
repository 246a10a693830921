"""What `dim inspect` says about the images themselves."""

from pathlib import Path

import pytest
from cli_tools import dim
from tiny_bundle import build_tiny_bundle

from dim.export.record_accuracy import record_accuracy
from dim.runtime.inspection.quality_summary import describe_images, list_copies, list_quality

NUMBERS = {"precision": 0.912, "recall": 0.5, "density": 1.0, "coverage": 0.75, "fd": 3.254, "kid": 0.00123}
QUALITY = {
    "images": 5000,
    "compared_by": "features of a toy",
    "generated": NUMBERS,
    "real": NUMBERS | {"precision": 0.966, "coverage": 0.97},
    "per_class": {"zero": {"precision": 0.4, "recall": 0.3, "density": 0.2, "coverage": 0.1}},
}
COPIES = {
    "near_duplicates": 0.125,
    "expected_duplicates": 0.011,
    "membership_auc": 0.75,
    "generated_distance": 1.5,
    "held_out_distance": 2.25,
}
NONE = {"verdict": "No sign of copies: of 300 generated images 1.0 % lie near. This is no proof.", "copies": False}


def test_quality_and_copies_are_a_line_each() -> None:
    assert describe_images({}) == {}
    assert describe_images({"quality": QUALITY, "privacy": NONE}) == {
        "quality": "precision 91 % (real images against each other: 97), coverage 75 % (97)",
        "copies": "No sign of copies; this is no proof of privacy",
    }
    copied = {"verdict": "The generator copies training images: of 9 generated images, 3 are.", "copies": True}
    assert describe_images({"privacy": copied}) == {"copies": "The generator copies training images"}
    few = {"verdict": "30 held-out images are too few to tell copies from chance.", "copies": False}
    assert describe_images({"privacy": few})["copies"] == (
        "30 held-out images are too few to tell copies from chance; this is no proof of privacy"
    )


def test_tables_have_a_row_for_each_kind_class_and_space() -> None:
    assert list_quality(QUALITY, by_class=True) == [
        ("generated", "0.91", "0.50", "1.00", "0.75", "3.25", "0.0012"),
        ("real training images", "0.97", "0.50", "1.00", "0.97", "3.25", "0.0012"),
        ("generated, zero", "0.40", "0.30", "0.20", "0.10", "", ""),
    ]
    assert len(list_quality(QUALITY, by_class=False)) == 2
    assert list_copies({"pixels": COPIES}) == [("pixels", "12.5 %", "1.1 %", "0.75", "1.50", "2.25")]


@pytest.mark.parametrize("value", [3, "x", [], {"generated": 3, "per_class": [1], "pixels": "x", "verdict": 5}])
def test_what_a_stranger_wrote_is_no_error(value: object, tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    record_accuracy(bundle, [], {"quality": value, "privacy": value})
    assert dim("inspect", bundle, "--all").code == 0


def test_inspect_shows_both_and_every_number_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    assert "quality" not in dim("inspect", bundle).out
    record_accuracy(bundle, [], {"quality": QUALITY, "privacy": NONE | {"pixels": COPIES}})
    short = dim("inspect", bundle).out
    assert "quality           precision 91 % (real images against each other: 97), coverage 75 % (97)\n" in short
    assert "copies            No sign of copies; this is no proof of privacy\n" in short
    assert "generated, zero" not in short
    lines = [" ".join(line.split()) for line in dim("inspect", bundle, "--all").out.splitlines()]
    assert "generated, zero 0.40 0.30 0.20 0.10" in lines and "pixels 12.5 % 1.1 % 0.75 1.50 2.25" in lines
    assert "compared by 5,000 images, features of a toy" in lines and f"verdict {NONE['verdict']}" in lines
