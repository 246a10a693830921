"""A stranger's manifest and export.json, changed at random: the card is written or the bundle refused."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_bundle import build_tiny_bundle

from dim.export.card import render_card
from dim.export.distill_command import write_distill_command
from dim.export.record import RECORD_NAME, ExportRecord, read_record
from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.bundle_format.manifest import create_manifest
from dim.runtime.errors import BundleError

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fuzz"))

from json_mutator import mutate_json

MUTATIONS = 400


@pytest.mark.slow
def test_any_record_gives_a_card(tmp_path: Path) -> None:
    whole = read_checked_file(SHIPPED, load_manifest(SHIPPED), RECORD_NAME)
    taken = 0
    for seed in range(MUTATIONS):
        changed = mutate_json(whole, seed)
        assert changed is not None
        bundle = build_tiny_bundle(tmp_path / f"{seed}.dim", extra_files={RECORD_NAME: changed})
        manifest = load_manifest(bundle)
        try:
            record = read_record(bundle, manifest)
        except BundleError:
            continue
        taken += record != ExportRecord()
        render_card(manifest, ExportRecord().merge(record))
    assert taken > MUTATIONS // 20


@pytest.mark.slow
def test_any_configuration_gives_a_card() -> None:
    manifest = load_manifest(SHIPPED)
    record = read_record(SHIPPED, manifest)
    taken = 0
    for seed in range(MUTATIONS):
        inner = mutate_json(json.dumps([manifest.distill_config, manifest.accuracy]).encode(), seed)
        assert inner is not None
        try:
            config, accuracy = json.loads(inner)
            description = replace(manifest.description, distill_config=config, accuracy=tuple(accuracy))
            changed = create_manifest(description, manifest.files)
        except (BundleError, ValueError, TypeError):
            continue
        taken += 1
        render_card(changed, record)
    assert taken > MUTATIONS // 2


def test_no_word_of_a_configuration_leaves_its_quotes() -> None:
    config = dict(load_manifest(SHIPPED).distill_config)
    whole = write_distill_command(config)
    assert whole is not None and shlex.split(whole)[:2] == ["dim", "distill"]
    for place, key in ((config, "name"), (config, "seed"), (config["data"], "name"), (config["data"], "image_px")):
        old, place[key] = place[key], "$(touch evil); `x`"
        command = write_distill_command(config)
        assert command is None or set(shlex.split(command, comments=False)) & {
            "$(touch evil); `x`",
            "runs/$(touch evil); `x`",
        }
        place[key] = old


EVIL = (
    "x <script>alert(1)</script> <img src=x> [click](https://evil.example) `code` **bold** ~~gone~~ | cell | $x$ "
    "www.evil.example a@evil.example \u202eright to left"
)
MARKUP = re.compile(r"(?<!\\)[<>*\[\]~$&@]|(?<!\\)://|www\.|[\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    "field", ["name", "created_by", "licence", "source.name", "source.licence", "source.note", "classes", "accuracy"]
)
def test_every_field_of_a_manifest_is_quoted_in_the_bundles_card(tmp_path: Path, field: str) -> None:
    manifest = load_manifest(SHIPPED)
    if field.startswith("source."):
        changed = replace(manifest, source=replace(manifest.source, **{field.partition(".")[2]: EVIL}))
    elif field == "classes":
        changed = load_manifest(build_tiny_bundle(tmp_path / "b.dim", classes=(EVIL, "plain")))
    elif field == "accuracy":
        rows = tuple(
            {key: EVIL if isinstance(value, str) else value for key, value in row.items()} for row in manifest.accuracy
        )
        changed = replace(manifest, accuracy=rows)
    else:
        changed = replace(manifest, **{field: EVIL})
    text = render_card(changed, ExportRecord() if field == "classes" else read_record(SHIPPED, manifest))
    _, head, body = text.split("---\n", 2)  # YAML, which is no Markdown
    block = yaml.safe_load(head)
    assert not re.search("[<>&\u202a-\u202e\u2066-\u2069]", head)
    assert set(block) - {"license_name"} == {"license", "pipeline_tag", "library_name", "tags"}
    assert "evil" not in str({**block, "license_name": ""})
    outside = re.sub(r"(?ms)^```.*?^```$", "", body)
    assert outside.count("```") == 0
    lines = [re.sub(r"`[\w.]+`", "code", line) for line in outside.splitlines() if "evil" in line or "script" in line]
    assert lines or field == "created_by"
    for line in lines:
        assert not MARKUP.search(line), line


@pytest.mark.parametrize("name", [EVIL, "a ` <img src=x>", "`"])
def test_the_commands_of_a_card_hold_what_a_stranger_wrote(tmp_path: Path, name: str) -> None:
    manifest = load_manifest(build_tiny_bundle(tmp_path / "b.dim"))
    text = render_card(
        replace(manifest, name=name, source=replace(manifest.source, name=name), accuracy=()), ExportRecord()
    )
    assert "\u202e" not in text
    outside = re.sub(r"(?ms)^```.*?^```$", "", text)
    for line in outside.splitlines():
        assert not re.search(r"(?<!\\)(<img|<script|`.*<)", re.sub(r"`[^`<]*`", "code", line)), line
