"""What a run records of how its data was read."""

import json
from dataclasses import replace
from pathlib import Path

from quick_runs import quick
from small_images import make_images

from dim.data.options import DataOptions
from dim.distillation.distill import describe_run
from dim.runs.record import read_run_record


def test_options_that_are_not_the_usual_ones_are_recorded(tmp_path: Path) -> None:
    config, images = quick(), make_images()
    plain = describe_run(config, images)
    assert "reading" not in plain.to_dict()["data"]
    options = DataOptions(image_column="photo", bits=12, split="train,val", skip_unreadable=True, size=8)
    record = describe_run(config, replace(images, options=options))
    assert record.to_dict()["data"]["reading"] == {
        "size": 8,
        "skip_unreadable": True,
        "bits": 12,
        "image_column": "photo",
        "split": "train,val",
    }
    (tmp_path / "config.json").write_text(json.dumps(record.to_dict()))
    assert read_run_record(tmp_path) == record
    assert record.fingerprint() == plain.fingerprint()  # the images decide the weights, not how they were read


def test_a_discriminator_of_pixels_is_recorded_as_before_there_were_patches(tmp_path: Path) -> None:
    pixels, patches = (describe_run(quick(**{"discriminator.patch_px": px}), make_images()) for px in (1, 2))
    assert "patch_px" not in pixels.to_dict()["discriminator"]
    (tmp_path / "config.json").write_text(json.dumps(patches.to_dict()))
    assert read_run_record(tmp_path) == patches
    assert pixels.fingerprint() != patches.fingerprint()
