"""Manifests: round trips, golden bytes, and every way in which a hostile one is refused."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dim.runtime.bundle_format.manifest import (
    BundleDescription,
    ImageShape,
    Manifest,
    SamplingInfo,
    SourceInfo,
    create_manifest,
    parse_manifest,
)
from dim.runtime.bundle_format.names import MAX_MANIFEST_BYTES
from dim.runtime.bundle_format.schema import MAX_CLASSES, FileRecord
from dim.runtime.errors import BundleError
from dim.runtime.storage import strict_json

RECORD = FileRecord(sha256="ab" * 32, size_bytes=3)

GOLDEN = """{
  "accuracy": [],
  "classes": [
    "cat",
    "naïve"
  ],
  "content_id": "df85510c3b9ed2674ddbc7402baee275b96fcfc9d833556b85456eeb8bde35a8",
  "created_by": "dim 0.1.0",
  "distill_config": {
    "seed": 1
  },
  "files": {
    "generator.fp32.onnx": {
      "sha256": "abababababababababababababababababababababababababababababababab",
      "size_bytes": 3
    }
  },
  "format_version": 1,
  "image": {
    "channels": 1,
    "height": 8,
    "width": 9
  },
  "licence": "CC0-1.0",
  "manifest_sha256": "SELF",
  "name": "pets",
  "sampling": {
    "latent_dim": 16,
    "latent_std": 1.25,
    "sampling_version": 1
  },
  "source": {
    "class_counts": [
      5,
      6
    ],
    "licence": "",
    "mean": [
      0.5
    ],
    "name": "pets",
    "note": "",
    "std": [
      0.25
    ]
  }
}
"""


def make(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "pets",
        "created_by": "dim 0.1.0",
        "classes": ("cat", "naïve"),
        "image": ImageShape(height=8, width=9, channels=1),
        "sampling": SamplingInfo(latent_dim=16, latent_std=1.25),
        "source": SourceInfo(name="pets", class_counts=(5, 6), mean=(0.5,), std=(0.25,), licence="", note=""),
        "distill_config": {"seed": 1},
        "licence": "CC0-1.0",
    }
    files = changes.pop("files", {"generator.fp32.onnx": RECORD})
    return create_manifest(BundleDescription(**(fields | changes)), files)


def altered(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest with one change and its own hash put right again, as somebody could write it on purpose."""
    block = json.loads(make().to_json())
    del block["manifest_sha256"]
    change(block)
    block["manifest_sha256"] = hashlib.sha256(strict_json.write_canonical(block)).hexdigest()
    return json.dumps(block).encode()


def test_golden_bytes() -> None:
    manifest = make()
    assert manifest.to_json().decode() == GOLDEN.replace("SELF", manifest.manifest_sha256)
    assert manifest.manifest_sha256 == "18fe5bd1a7aa5ebfe41267ed19a92e1c1a46b2933329847ef07e80c753bed3c9"


def test_round_trip() -> None:
    rows = ({"ipc": 10, "mean": 71.25, "note": None}, {"ipc": 50, "mean": 72, "note": None}, {"ipc": 1, "std": [0.5]})
    manifest = make(accuracy=rows, distill_config={"a": {"b": [1, 2.5, "ü"]}})
    assert parse_manifest(manifest.to_json()) == manifest


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=10,
)
names = st.text(st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x24F), min_size=1, max_size=12).filter(
    lambda name: unicodedata.is_normalized("NFC", name)
)


@given(
    classes=st.lists(names, min_size=1, max_size=6, unique=True),
    config=st.dictionaries(names, plain, max_size=3),
    accuracy=st.lists(st.dictionaries(names, plain, max_size=3), max_size=3),
    latent_std=st.floats(0.01, 100),
    channels=st.sampled_from([1, 3]),
)
def test_any_manifest_survives_the_round_trip(
    classes: list[str], config: dict, accuracy: list[dict], latent_std: float, channels: int
) -> None:
    source = SourceInfo(
        name="x", class_counts=(1,) * len(classes), mean=(0.1,) * channels, std=(1.0,) * channels, licence="", note=""
    )
    manifest = make(
        classes=tuple(classes),
        distill_config=config,
        accuracy=tuple(accuracy),
        sampling=SamplingInfo(latent_dim=16, latent_std=latent_std),
        image=ImageShape(height=8, width=9, channels=channels),
        source=source,
    )
    assert parse_manifest(manifest.to_json()) == manifest
    assert parse_manifest(strict_json.write_canonical(json.loads(manifest.to_json()))) == manifest


def test_content_id_is_the_hash_of_what_draws() -> None:
    identity = (
        '{"classes":["cat","naïve"],"generator":"' + "ab" * 32 + '","latents":null,'
        '"sampling":{"latent_dim":16,"latent_std":1.25,"sampling_version":1}}'
    )
    assert make().content_id == hashlib.sha256(identity.encode()).hexdigest()


def test_content_id_ignores_what_does_not_draw() -> None:
    base = make().content_id
    assert make(accuracy=({"a": 1},), name="other", licence="MIT").content_id == base
    assert make(files={"generator.fp32.onnx": RECORD, "generator.fp16.onnx": RECORD}).content_id == base
    other = FileRecord(sha256="cd" * 32, size_bytes=3)
    changed = [
        make(files={"generator.fp32.onnx": other}),
        make(files={"generator.fp32.onnx": RECORD, "latents.npz": RECORD}),
        make(classes=("naïve", "cat")),
        make(sampling=SamplingInfo(latent_dim=16, latent_std=1.0)),
        make(sampling=SamplingInfo(latent_dim=17, latent_std=1.25)),
    ]
    filtered = SamplingInfo(latent_dim=16, latent_std=1.25, sampling_version=2)
    files = {"generator.fp32.onnx": RECORD}
    changed += [make(sampling=filtered, files=files | {"accepted.bin": record}) for record in (RECORD, other)]
    assert len({manifest.content_id for manifest in changed} | {base}) == 8


def test_newer_format_says_so() -> None:
    with pytest.raises(BundleError) as refused:
        parse_manifest(b'{"format_version": 2, "engines": [{"anything": 1}]}')
    assert str(refused.value) == (
        "The manifest has format version 2 and was made by a newer dim; this one reads version 1: "
        "run  pip install --upgrade dim-distill"
    )


def test_an_altered_value_is_noticed() -> None:
    data = make().to_json().replace(b'"seed": 1', b'"seed": 2')
    with pytest.raises(
        BundleError, match="was altered: its contents do not match its manifest_sha256; fetch the bundle again"
    ):
        parse_manifest(data)


def set_at(*path: Any) -> Callable[[dict[str, Any]], object]:
    *way, key, value = path

    def change(block: dict[str, Any]) -> None:
        for step in way:
            block = block[step]
        block[key] = value

    return change


def table(
    shared: dict[str, Any] | None = None, columns: Sequence[str] = (), rows: Sequence[Any] = ()
) -> dict[str, Any]:
    """A table of accuracy as the file holds it."""
    return {"shared": shared or {}, "columns": list(columns), "rows": list(rows)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("classes"), "lacks the field classes"),
        (lambda b: b["image"].pop("width"), "lacks the field image.width"),
        (set_at("surprise", 1), "unknown field surprise"),
        (set_at("sampling", "surprise", 1), "unknown field sampling.surprise"),
        (set_at("files", "generator.fp32.onnx", "mode", 1), "unknown field files"),
        (set_at("format_version", 0), "format_version is 0; it must be 1"),
        (set_at("format_version", True), "format_version is True; it must be 1"),
        (set_at("format_version", "1"), "format_version is '1'; it must be 1"),
        (set_at("image", 3), "field image is 3; it must be an object"),
        (set_at("image", "height", 0), "image.height is 0; it must be an integer from 1 to 1,024"),
        (set_at("image", "height", True), "image.height is True; it must be an integer"),
        (set_at("image", "height", 8.0), "image.height is 8.0; it must be an integer"),
        (set_at("image", "channels", 2), "image.channels is 2; it must be 1 or 3"),
        (
            set_at("sampling", "sampling_version", 3),
            r"has sampling version 3 and was made by a newer dim; this one reads version 2",
        ),
        (set_at("sampling", "sampling_version", 0), "sampling.sampling_version is 0; it must be 1 or 2"),
        (set_at("sampling", "sampling_version", 2), "sampling version 2 and the file accepted.bin belong together"),
        (
            set_at("files", "accepted.bin", {"sha256": "ab" * 32, "size_bytes": 3}),
            "sampling version 2 and the file accepted.bin belong together",
        ),
        (
            set_at("sampling", "latent_dim", 10**6),
            "sampling.latent_dim is 1000000; it must be an integer from 1 to 4,096",
        ),
        (set_at("sampling", "latent_std", 0), "sampling.latent_std is 0; it must be a number from 1e-06 to 1000"),
        (set_at("sampling", "latent_std", "1"), "sampling.latent_std is '1'; it must be a number"),
        (set_at("classes", []), "0 classes"),
        (set_at("classes", {"cat": 1}), "field classes is .*; it must be a list"),
        (set_at("classes", ["cat", "cat"]), "lists the class 'cat' twice"),
        (set_at("classes", ["cat", 5]), r"field classes\[1\] is 5; it must be text"),
        (set_at("classes", ["cat", " "]), "field classes is ' '"),
        (set_at("classes", ["cat", "a\nb"]), "without control characters"),
        (set_at("classes", ["cat", "a\x1b[2J"]), "without control characters"),
        (set_at("classes", ["cat", "e\u0301"]), "composed form"),
        (set_at("classes", [str(i) for i in range(MAX_CLASSES + 1)]), "65,537 classes"),
        (set_at("source", "class_counts", [1]), "source.class_counts"),
        (set_at("source", "class_counts", [1, -1]), "source.class_counts is -1; it must be an integer from 0"),
        (set_at("source", "mean", [0.5, 0.5]), "source.mean"),
        (set_at("source", "std", ["0.5"]), r"source.std\[0\] is '0.5'; it must be a number"),
        (set_at("source", "name", ["a"]), r"source.name is \['a'\]; it must be text"),
        (set_at("name", ""), "field name is ''"),
        (set_at("licence", "x" * 20_001), "field licence"),
        (set_at("distill_config", []), r"field distill_config is \[\]; it must be an object"),
        (set_at("accuracy", [1]), r"field accuracy\[0\] is 1; it must be an object"),
        (set_at("accuracy", {}), "field accuracy is {}; it must be a list"),
        (set_at("files", []), r"field files is \[\]; it must be an object"),
        (set_at("files", {}), "does not list generator.fp32.onnx"),
        (set_at("files", "generator.fp32.onnx", {"sha256": "AB" * 32, "size_bytes": 3}), "hexadecimal"),
        (set_at("files", "generator.fp32.onnx", "size_bytes", 2**33), "size_bytes"),
        (set_at("content_id", "ab" * 32), "content_id does not match"),
        (set_at("files", "generator.fp32.onnx", "sha256", "cd" * 32), "content_id does not match"),
        (set_at("distill_config", "note", "\x1b[2J"), "distill_config is .*without control characters in its text"),
        (
            set_at("accuracy", [table(shared={"mode": ["\x9b2J"]}, rows=[[]])]),
            "accuracy is .*without control characters",
        ),
        (set_at("accuracy", [table(columns=["\x07"], rows=[[1]])]), "accuracy is .*without control characters"),
        (set_at("accuracy", [table(columns=["a", "a"], rows=[[1, 2]])]), "different names, none of them shared"),
        (
            set_at("accuracy", [table(shared={"a": 1}, columns=["a"], rows=[[2]])]),
            "different names, none of them shared",
        ),
        (set_at("accuracy", [table(columns=["a"], rows=[[1, 2]])]), "one value for each of 1 columns"),
        (
            set_at("accuracy", [table(shared=dict.fromkeys(map(str, range(600)), 1), rows=[[]] * 900)]),
            "at most 524,288",
        ),
        (set_at("distill_config", "deep", json.loads("[" * 20 + "]" * 20)), "deeper than 16"),
    ],
)
def test_hostile_fields_are_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_manifest(altered(change))


def test_what_all_rows_say_is_written_once() -> None:
    rows = [{"arch": "convnet3", "ipc": ipc, "mean": 50.0 + ipc, "text": "[1, 2]"} for ipc in range(40)]
    written = make(accuracy=tuple(rows)).to_json()
    assert written.count(b"convnet3") == 1 and written.count(b"\n        [") == 40
    assert list(parse_manifest(written).accuracy) == rows


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../x", "a/../b", "a/./b", "./a", "a//b", "a/", "", ".", "..", "a\\b", "C:x", "a?", "a*"),
        *("a\x00b", "a\nb", "e\u0301", "nul", "sub/COM1.txt", "x ", "x.", " x", ".hidden", "a" * 241),
        *("manifest.json", "MANIFEST.JSON"),
    ],
)
def test_paths_that_leave_the_bundle_are_refused(path: str) -> None:
    record = {"sha256": "ab" * 32, "size_bytes": 3}
    with pytest.raises(BundleError, match="must be relative, with forward slashes, and stay inside"):
        parse_manifest(altered(set_at("files", path, record)))


@pytest.mark.parametrize("other", ["Generator.fp32.onnx", "GENERATOR.FP32.ONNX"])
def test_names_that_collide_on_other_file_systems_are_refused(other: str) -> None:
    with pytest.raises(BundleError, match="one file on some file systems"):
        make(files={"generator.fp32.onnx": RECORD, other: RECORD})


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    with pytest.raises(BundleError, match="also its folder as a file"):
        make(files={"generator.fp32.onnx": RECORD, "a/b": RECORD, "A": RECORD})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not UTF-8 JSON"),
        (b"\xff\xfe{}", "is not UTF-8 JSON"),
        (b"[]", r"^The manifest is \[\]; it must be an object: fetch the bundle again, or export it anew\.$"),
        (b"null", r"^The manifest is None; it must be an object: fetch the bundle again"),
        (b"{}", r"^The manifest lacks the field format_version: fetch the bundle again"),
        (b'{"format_version": 1}', r"^The manifest lacks the field name: fetch the bundle again, or export it anew\.$"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' twice"),
        (b'{"a": NaN}', "the number NaN"),
        (b'{"a": -Infinity}', "the number -Infinity"),
        (b'{"a": 1e999}', "the number 1e999, which is too large"),
        (b'{"a": 123456789012345678901234567890}', "beyond 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "beyond 64 bits"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\udfff": 1}', "half a surrogate pair"),
        (b"[" * 100_000, "deeper than 16"),
        (b"[" * 30 + b"]" * 30, "deeper than 16"),
        (b'{"a":' * 30_000, "deeper than 16"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "at most 8,388,608 are read"),
    ],
)
def test_json_that_readers_disagree_about_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_manifest(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.data())
def test_any_changed_byte_is_refused_or_means_the_same(data: st.DataObject) -> None:
    manifest = make()
    written = bytearray(manifest.to_json())
    written[data.draw(st.integers(0, len(written) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert parse_manifest(bytes(written)) == manifest
    except BundleError:
        pass


@given(plain)
def test_strict_json_round_trip(value: Any) -> None:
    for written in (strict_json.write_canonical(value), strict_json.write_indented(value)):
        assert strict_json.parse(written, "it", 10**6) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**70, {1: 2}, {"a": object()}, b"x", {"a": {1, 2}}])
def test_what_json_cannot_hold_is_not_written(value: Any) -> None:
    with pytest.raises(BundleError):
        make(distill_config={"value": value})


def test_what_else_was_found_is_left_out_where_it_is_empty_and_survives_where_not() -> None:
    assert b'"evaluation"' not in make().to_json()
    found = {"privacy": {"verdict": "No sign of copies.", "copies": False}}
    manifest = make(evaluation=found)
    assert parse_manifest(manifest.to_json()) == manifest and manifest.evaluation == found
    assert manifest.content_id == make().content_id and manifest.manifest_sha256 != make().manifest_sha256
    with pytest.raises(BundleError, match="was altered"):
        parse_manifest(manifest.to_json().replace(b"No sign of", b"Many"))
