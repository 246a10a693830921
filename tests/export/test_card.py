"""The model card: the command that reproduces a run, accuracy rows, and names that try to be markup."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from export_runs import generator_config, run_config
from tiny_bundle import build_tiny_bundle

from dim.config import to_dict
from dim.export.card import render_card
from dim.export.distill_command import write_distill_command
from dim.export.record import read_record
from dim.export.record_accuracy import record_accuracy
from dim.export.reuse import select_valid_findings
from dim.presets import preset
from dim.runtime.bundle_format.files import load_manifest

ROOT = Path(__file__).parents[2]
ROW: dict[str, Any] = {
    "subject": "bundle | mine",
    "mode": "stream",
    "ipc": 10,
    "arch": "convnet3",
    "width": None,
    "labels": "hard",
    "recipe": "default",
    "epochs": 1000,
    "accuracy_mean": 98.125,
    "accuracy_std": 0.25,
    "seeds": [0, 1, 2],
    "steps": 2000,
    "distinct_images": 100000,
    "protocol": "test split once",
}


def config_of(name: str, overrides: dict[str, Any], **data: Any) -> dict[str, Any]:
    """A run's configuration as `dim distill` writes it."""
    classes, counts = ("a", "b", "c", "d"), (10, 11, 12, 13)
    shape: Any = SimpleNamespace(name=name, classes=classes, class_counts=counts, height=28, channels=1)
    values = to_dict(preset("small", data=shape, overrides=overrides))
    generator = values["generator"] | {"num_classes": 4, "image_px": 28, "channels": 1}
    record = run_config(generator)["data"] | {"name": name} | data
    return values | {"format_version": 1, "generator": generator, "data": record}


@pytest.mark.parametrize("folder", ["runtime/shipped/mnist.dim", "bundles/cifar10.dim"])
def test_the_shipped_card_is_what_its_manifest_says_today(folder: str) -> None:
    """Its command names every field in which the bundle differs from the preset, which may have changed since."""
    shipped = ROOT / folder
    manifest = load_manifest(shipped)
    assert (shipped / "README.md").read_text() == render_card(manifest, read_record(shipped, manifest))


def test_a_preset_needs_no_settings() -> None:
    assert write_distill_command(config_of("mnist", {})) == "dim distill --data mnist --preset small --out runs/mnist"


def test_settings_seed_and_shape_are_spelled_out() -> None:
    command = write_distill_command(
        config_of("my set", {"seed": 7, "stage1.steps": 9, "pool.architectures": ("mlp", "vgg11")})
    )
    assert command is not None
    assert shlex.split(command) == [
        *("dim", "distill", "--data", "my set", "--preset", "small", "--size", "28", "--channels", "1", "--seed", "7"),
        *("--set", "stage1.steps=9", "--set", 'pool.architectures=["mlp", "vgg11"]', "--out", "runs/my set"),
    ]


def test_how_often_a_run_reported_is_left_out() -> None:
    assert write_distill_command(config_of("mnist", {"log_steps": 3})) == write_distill_command(config_of("mnist", {}))


def test_a_run_from_before_a_field_has_the_value_that_changes_nothing() -> None:
    old = config_of("mnist", {})
    assert old["deployment"].pop("refine_steps") == 400
    line = "dim distill --data mnist --preset small --set deployment.refine_steps=0 --out runs/mnist"
    assert write_distill_command(old) == line


def test_an_unknown_preset_has_no_command() -> None:
    assert write_distill_command(run_config(generator_config(), preset="lost")) is None


def test_accuracy_rows_go_into_manifest_and_card(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    assert "Not measured yet:" in render_card(load_manifest(bundle))
    before = load_manifest(bundle)
    after = record_accuracy(bundle, [ROW])
    assert after.accuracy == (ROW,)
    assert after.content_id == before.content_id
    card = (bundle / "README.md").read_text()
    row = (
        "| bundle \\| mine | - | stream | 10 | convnet3 | default, 1,000 | hard | 98.12 ± 0.25 | 3 | 2,000 | 100,000 |"
    )
    assert row in card
    assert "Protocol: test split once." in card


def test_a_row_of_several_generators_says_how_many(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    record_accuracy(bundle, [ROW])
    assert "Mean ± standard deviation over the seeds.\n" in (bundle / "README.md").read_text()
    record_accuracy(bundle, [ROW, {**ROW, "subject": "preset small", "generators": 3, "seeds": [0, 1] * 3}])
    card = (bundle / "README.md").read_text()
    assert "| preset small | - | stream | 10 | convnet3 | default, 1,000 | hard | 98.12 ± 0.25 | 6 of 3 gen" in card
    assert "Mean ± standard deviation over the seeds, or over the generators of a row.\n" in card


def test_an_archive_says_how_it_is_coded(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    avif = {"codec": "avif", "quality": 20, "images_per_class": 4013, "max_bytes": 2_530_289}
    row = {**ROW, "subject": "archive", "source": "archive", "archive": avif, "data_bytes": 2_500_123}
    whole = {**row, "subject": "archive, fp16", "archive": avif | {"codec": "webp-lossless", "quality": 100}}
    record_accuracy(bundle, [row, whole, {**row, "subject": "odd", "archive": {"codec": 3}, "data_bytes": "x"}])
    card = (bundle / "README.md").read_text()
    assert "| archive: avif of quality 20, 4,013 per class, 2.50 MB | - | stream |" in card
    assert "| archive, fp16: webp-lossless, 4,013 per class, 2.50 MB | - | stream |" in card
    assert "| odd: 3 of quality None, ? per class | - | stream |" in card


def test_a_row_replaces_the_one_of_its_protocol_and_leaves_the_others(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    other, better = {**ROW, "mode": "fixed"}, {**ROW, "accuracy_mean": 99.0}
    record_accuracy(bundle, [ROW, other])
    assert record_accuracy(bundle, [better]).accuracy == (other, better)


def test_int8_stands_beside_fp32_with_the_precision_named(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    fp32 = {**ROW, "subject": "generated", "engine": "onnxruntime-cpu fp32 on cpu, onnxruntime 1.32.0"}
    int8 = {**fp32, "engine": "", "engine_precision": "int8", "accuracy_mean": 98.0}
    record_accuracy(bundle, [fp32])
    assert record_accuracy(bundle, [int8]).accuracy == (fp32, int8)
    card = (bundle / "README.md").read_text()
    for precision, accuracy in (("fp32", "98.12"), ("int8", "98.00")):
        assert (
            f"| generated | {precision} | stream | 10 | convnet3 | default, 1,000 | hard | {accuracy} ± 0.25 |" in card
        )


def test_rows_may_lack_fields(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    rows: list[dict[str, Any]] = [{"accuracy_mean": 5, "width": 64, "arch": "vgg11"}]
    record_accuracy(bundle, [*rows, {"arch": "mlp", "recipe": "default", "epochs": 1000, "precision": "bf16"}])
    card = (bundle / "README.md").read_text()
    assert "| ? | - | ? | all | vgg11 (width 64) | ?, ? | hard | 5.00 | 0 | ? | ? |" in card
    assert "| mlp | default, 1,000, bf16 | hard |" in card


def test_names_cannot_be_markup(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", classes=("<script>", "a|b", "[x](y)", "*b*"))
    card = render_card(load_manifest(bundle))
    assert "\\<script\\> (10), a\\|b (20), \\[x\\](y) (30), \\*b\\* (40)" in card


def test_many_classes_are_cut_short(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", classes=[f"class {i}" for i in range(100)])
    card = render_card(load_manifest(bundle))
    assert "class 19 (200), and 80 more." in card
    assert "class 20 " not in card


def test_every_file_is_listed_with_its_hash(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", precisions=("fp32", "fp16"))
    manifest = load_manifest(bundle)
    card = render_card(manifest)
    for name, record in manifest.files.items():
        listed = f"| `{name}` | {record.size_bytes:,} | `{record.sha256}` |" in card
        assert listed == (name != "README.md")
    assert manifest.content_id in card


def test_quality_and_the_verdict_on_copies_go_into_manifest_and_card(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    numbers = {"precision": 0.912, "recall": 0.5, "density": 1.0, "coverage": 0.75, "fd": 3.254, "kid": 0.00123}
    quality = {
        "images": 5000,
        "compared_by": "features of a convnet3",
        "generated": numbers,
        "real": numbers | {"coverage": 0.97},
        "per_class": {"zero": {"coverage": 0.5}, "one|two": {"coverage": 0.9}, "x": 3},
    }
    record_accuracy(bundle, [], {"quality": quality})
    manifest = record_accuracy(bundle, [ROW], {"privacy": {"verdict": "No sign of copies.", "copies": False}})
    assert manifest == load_manifest(bundle) and manifest.evaluation["quality"] == quality
    card = (bundle / "README.md").read_text()
    for text in [
        "## Quality\n\n5,000 images against as many test images, in features of a convnet3.",
        "| generated | 0.91 | 0.50 | 1.00 | 0.75 | 3.25 | 0.0012 |",
        "| real training images | 0.91 | 0.50 | 1.00 | 0.97 | 3.25 | 0.0012 |",
        r"the coverage lies between 0.50 (zero) and 0.90 (one\|two).",
        "## Copies\n\nNo sign of copies.",
        '"Copies" says what was found.',
    ]:
        assert text in card
    # A stranger's manifest may hold anything.
    record_accuracy(bundle, [], {"quality": {"generated": 3}, "privacy": []})
    assert "## Quality" in (bundle / "README.md").read_text()


def test_what_was_found_of_another_file_is_not_kept(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    found = {"quality": {"precision": "int8"}, "privacy": {"precision": "fp32", "verdict": "No sign of copies."}}
    manifest = record_accuracy(bundle, [], found)
    assert select_valid_findings(manifest, {"generator.int8.onnx"}) == {"privacy": found["privacy"]}
    assert select_valid_findings(manifest, set()) == found
