"""A folder that a stranger prepared: `dataset.json` and what lies beside it cannot make `dim` work without end."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import OutputError
from dim.runtime.set_formats.part import FileEntry, PartRecord
from dim.runtime.set_formats.plan import FORMATS, MAX_PARTS
from dim.runtime.sets import journal as set_files
from dim.runtime.sets.card import write_card
from dim.runtime.sets.croissant import write_croissant
from dim.runtime.sets.journal import MAX_BYTES, SetFile, Written, read_set, remove_set
from dim.runtime.storage import local_store as set_store
from dim.runtime.storage.local_store import LocalStore
from dim.runtime.storage.place import make_place

COUNTS = (3, 2, 0)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def rewrite(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    block = json.loads((out / "dataset.json").read_bytes())
    change(block)
    (out / "dataset.json").write_text(json.dumps(block))


class Counting(LocalStore):
    """Counts what is asked of the file system."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.removed: list[str] = []
        self.listed = 0

    def remove(self, name: str, with_contents: bool = False) -> None:
        self.removed.append(name)
        super().remove(name, with_contents)

    def list(self, folder: str = "") -> list[str]:
        self.listed += 1
        return super().list(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_removing_takes_what_is_there_whatever_the_plan_claims(bundle: Bundle, tmp_path: Path, format: str) -> None:
    out = tmp_path / "set"
    generate(bundle, out, counts=COUNTS, format=format)
    (out / "notes.txt").write_text("keep me")

    def claim(block: dict[str, Any]) -> None:
        block["written"] = None
        block["plan"]["counts"] = [2**32, 2**32, 2**32]
        block["plan"]["part_images"] = 2**40 if format == "imagefolder" else block["plan"]["part_images"]

    if format == "imagefolder":
        rewrite(out, claim)
        (out / "zero" / "0000000001.png").write_text("not one of ours, which have eight digits")
    store = Counting(out)
    make_place(store)
    data = store.read("dataset.json")
    assert data is not None
    found = SetFile.from_json(data, "f")
    files = [
        name for name in tree(out) if name.startswith(("zero/0000000", "one/", "data/", "train", "images", "labels"))
    ]
    files = [name for name in files if "0000000001" not in name]
    remove_set(store, found)
    assert set(files) <= set(store.removed) and len(files) > 0
    # The files that were there, the folders of three classes, and the few names that every set has.
    assert len(store.removed) <= len(files) + 3 + 5 and store.listed <= 5
    left = {"notes.txt"} | ({"zero/0000000001.png"} if format == "imagefolder" else set())
    assert set(tree(out)) == left


@pytest.mark.parametrize("format", ["imagefolder", "npy"])
@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.extend(parts * 1000),
        lambda parts: parts.clear(),
        lambda parts: parts[0].update(part=10**18),
        lambda parts: parts[0].update(images=10**18),
        lambda parts: parts[0].update(files=[{"path": "thesis.tex", "bytes": 1, "sha256": "0" * 64}]),
    ],
)
def test_a_set_with_records_of_other_parts_is_made_again(
    bundle: Bundle, tmp_path: Path, format: str, change: Callable[[Any], object]
) -> None:
    generate(bundle, tmp_path, counts=COUNTS, format=format)
    expected = tree(tmp_path)
    rewrite(tmp_path, lambda block: change(block["written"]["parts"]))
    assert generate(bundle, tmp_path, counts=COUNTS, format=format).images_drawn == 5
    assert tree(tmp_path) == expected


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 2000, b'{"part":1}', b"OTHER"])
def test_a_journal_that_says_something_else_is_passed_over(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    generate(bundle, tmp_path / "whole", counts=COUNTS, format="npy", shard_images=2)
    generate(bundle, tmp_path / "set", counts=COUNTS, format="npy", shard_images=2, shard=(1, 2))
    journal = tmp_path / "set" / ".dim" / "parts"
    assert [path.name for path in journal.iterdir()] == ["000001.json"]
    other = (journal / "000001.json").read_bytes() if content == b"OTHER" else content
    (journal / "000000.json").write_bytes(other)
    assert generate(bundle, tmp_path / "set", counts=COUNTS, format="npy", shard_images=2).images_drawn == 3
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_plan_of_too_many_parts_or_classes_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, counts=COUNTS, format="npy")
    rewrite(tmp_path, lambda block: block["plan"].update(counts=[2**32] * 3, part_images=1))
    with pytest.raises(OutputError, match="dataset.json is malformed at plan: found 'npy, 12884901888 parts"):
        generate(bundle, tmp_path, counts=COUNTS, format="npy")
    rewrite(tmp_path, lambda block: block["plan"].update(counts=[1] * 65_537, classes=["x"] * 65_537))
    with pytest.raises(OutputError, match="dataset.json is malformed at plan.classes"):
        generate(bundle, tmp_path, counts=COUNTS, format="npy")


@pytest.mark.parametrize("what", ["pipe", "folder", "huge"])
def test_what_is_no_file_of_a_set_is_not_read(
    bundle: Bundle, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "dataset.json"
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        monkeypatch.setattr(set_store, "MAX_READ_BYTES", 99)
        place.write_bytes(bytes(100))
    with pytest.raises(OutputError, match=r"dataset\.json is a link, no file, or too long: make the set in another"):
        generate(bundle, tmp_path, counts=COUNTS)


def test_many_values_are_refused_before_they_are_parsed(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(b"[" + b"{}," * 2**22 + b"{}]")
    with pytest.raises(OutputError, match=r"holds about 8,388,610 values; at most 4,194,304 are read"):
        generate(bundle, tmp_path, counts=COUNTS)


def test_the_largest_set_fits_its_own_limits(bundle: Bundle, tmp_path: Path) -> None:
    """Measured on sets of one and two classes and parts, because every further one is as large as the second."""
    generate(bundle, tmp_path / "set", counts=COUNTS, format="npy")
    plan = SetFile.from_json((tmp_path / "set" / "dataset.json").read_bytes(), "f").plan
    files = [f"{stem}-99999-of-100000.npy" for stem in ("images", "labels", "logits")]
    record = PartRecord(
        part=MAX_PARTS - 1,
        images=2**20,
        bytes=2**40,
        sha256="0" * 64,
        files=tuple(FileEntry(path=path, bytes=2**40, sha256="0" * 64) for path in files),
    )

    def written(classes: int, parts: int) -> bytes:
        names = ("\N{MATHEMATICAL BOLD CAPITAL A}" * 200,) * classes
        large = replace(plan, classes=names, counts=(2**32,) * classes)
        return SetFile(
            created_by="dim",
            complete=True,
            plan=large,
            written=Written(images=2**40, bytes=2**50, parts=(record,) * parts, files={}),
        ).to_json()

    def largest(measure: Callable[[bytes], int]) -> int:
        one, classes, parts = (measure(written(*sizes)) for sizes in ((1, 1), (2, 1), (1, 2)))
        return one + (classes - one) * MAX_CLASSES + (parts - one) * MAX_PARTS

    assert largest(len) < MAX_BYTES == set_store.MAX_READ_BYTES
    assert largest(lambda data: sum(map(data.count, (b",", b"[", b"{")))) < set_files.MAX_VALUES


EVIL = (
    'x\n---\nconfigs: [{"data_files": "https://evil.example/*.py"}]\n<script>alert(1)</script> <img src=x> '
    "[click](https://evil.example) ![i](https://evil.example/i.gif) `code` **bold** ~~gone~~ &lt;b&gt; | cell | $x$ "
    "www.evil.example a@evil.example \u202eright to left\x1b[2J \U0001f600"
)
MARKUP = re.compile(r"(?<!\\)[<>`*\[\]|~$&@]|(?<!\\)://|www\.|[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
OF_MANIFESTS = ("licence", "source.name", "source.licence", "source.note")
OF_PLANS = ("name", "classes", "engine", "version", "device", "precision", "encoder")


@pytest.mark.parametrize("field", [*OF_MANIFESTS, *OF_PLANS])
@pytest.mark.parametrize("format", FORMATS)
def test_a_card_quotes_what_a_stranger_wrote(tiny_bundle: Path, tmp_path: Path, format: str, field: str) -> None:
    """Every text that reaches the card and Croissant from a bundle or a plan, one at a time."""
    with open_bundle(tiny_bundle, engine="fake") as opened:
        manifest = opened.manifest
        generate(opened, tmp_path, counts=COUNTS, format=format)
    found = read_set(LocalStore(tmp_path))
    assert found is not None and found.written is not None
    plan, plain = found.plan, write_card(manifest, found.plan).decode()
    engine = {"engine": "name", "version": "version", "device": "device", "precision": "precision"}
    # Manifests refuse control letters, and short fields line breaks too.
    text = EVIL.replace("\x1b", "").replace("\n", " " if field == "source.name" else "\n")
    if field == "name":
        plan = replace(plan, bundle=EVIL)
    elif field.startswith("source."):
        manifest = replace(manifest, source=replace(manifest.source, **{field.partition(".")[2]: text}))
    elif field == "classes":
        plan = replace(plan, classes=(EVIL, *plan.classes[1:]))
    elif field in engine:
        plan = replace(plan, engine=replace(plan.engine, **{engine[field]: EVIL}))
    elif field == "encoder":
        plan = replace(plan, encoder=EVIL)
    else:
        manifest = replace(manifest, licence=text)
    card = write_card(manifest, plan).decode()
    head, body = card.split("---\n")[1], card.partition("---\n")[2].partition("\n---\n")[2]
    block = yaml.safe_load(head)
    assert not re.search("[<>&]", head.replace("n<1K", ""))
    if field == "name":
        assert block["pretty_name"].startswith(EVIL[: EVIL.index("\u202e")])
    assert set(block) - {"license_name"} == set(yaml.safe_load(plain.split("---\n")[1]))
    assert all("evil" not in str(value) for key, value in block.items() if key not in ("license_name", "pretty_name"))
    changed = [line for line in body.splitlines() if "evil" in line]
    for line in changed:
        text = line.strip("| ").split(" | ")[1] if field == "classes" else re.sub(r"`\w+`", "code", line)
        assert not MARKUP.search(text), text
    assert len(changed) == {"encoder": 0, "name": 3}.get(field, 1)
    croissant = json.loads(write_croissant(manifest, plan, found.written.parts))
    del croissant["@context"], croissant["recordSet"], croissant["distribution"]
    assert all(not MARKUP.search(str(croissant[key])) for key in ("name", "description"))
    assert re.fullmatch(r"[A-Za-z0-9._-]+", croissant["name"])
    assert not MARKUP.search(croissant.get("license", ""))


@pytest.mark.parametrize("licence", ["CC BY-SA 3.0", "https://creativecommons.org/licenses/by/4.0/", "MIT"])
def test_a_plain_licence_stays_what_it_is(tiny_bundle: Path, tmp_path: Path, licence: str) -> None:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        opened.manifest = replace(opened.manifest, licence=licence)
        generate(opened, tmp_path, counts=COUNTS)
    assert json.loads((tmp_path / "croissant.json").read_text())["license"] == licence
