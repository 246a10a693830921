"""`generate` end to end with the fake engine: what is written, resumed, refused and replaced."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from set_tools import estimate_set, generate, identities, tree
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.engines.fake import FakeEngine
from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.sampling.latents import index_major_order
from dim.runtime.set_formats.imagefolder import ImageFolder
from dim.runtime.set_formats.png import encoder_version
from dim.runtime.units import format_units

COUNTS = (70, 40, 5)
MANY = (350, 200, 40)
FORMATS = ("imagefolder", "npz", "npy")


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def read_pixels(folder: Path, format: str, bundle: Bundle) -> tuple[Any, Any]:
    """Read a set back as images and labels in its order."""
    if format == "npz":
        archive = np.load(folder / "train.npz")
        assert archive["classes"].tolist() == list(bundle.classes)
        return archive["images"], archive["labels"]
    if format == "npy":
        assert json.loads((folder / "classes.json").read_text()) == list(bundle.classes)
        return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy", mmap_mode="r")
    labels, indices = index_major_order(COUNTS)
    images = [
        np.asarray(Image.open(folder / bundle.classes[label] / f"{index:08d}.png"))[..., None]
        for label, index in zip(labels, indices, strict=True)
    ]
    return np.stack(images), labels


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_holds_exactly_what_the_bundle_draws(bundle: Bundle, tmp_path: Path, format: str) -> None:
    summary = generate(bundle, tmp_path / "set", counts=COUNTS, seed=5, format=format)
    images, labels = read_pixels(tmp_path / "set", format, bundle)
    expected_labels, indices = index_major_order(COUNTS)
    assert np.array_equal(labels, expected_labels) and labels.dtype == np.int64
    assert np.array_equal(images, bundle.sample(expected_labels, indices, seed=5)) and images.dtype == np.uint8
    assert (summary.images, summary.images_drawn, summary.complete) == (115, 115, True)
    assert not (tmp_path / "set" / ".dim").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_dataset_json_holds_the_plan_and_what_was_written(bundle: Bundle, tmp_path: Path, format: str) -> None:
    import hashlib

    generate(bundle, tmp_path / "set", counts=COUNTS, format=format)
    files = tree(tmp_path / "set")
    block = json.loads(files["dataset.json"])
    assert block["complete"] is True and block["format_version"] == 1
    assert block["plan"]["content_id"] == bundle.manifest.content_id
    assert block["plan"]["engine"] == {
        "name": "fake",
        "version": "fake 1",
        "device": "cpu",
        "precision": "fp32",
        "batch": None,
        "reason": "as asked",
    }
    assert block["written"]["images"] == 115
    listed: dict[str, Any] = dict(block["written"]["files"])
    for part in block["written"]["parts"]:
        listed |= {entry["path"]: entry for entry in part["files"]}
    for path, entry in listed.items():
        assert entry["sha256"] == hashlib.sha256(files[path]).hexdigest() and entry["bytes"] == len(files[path])
    if format == "imagefolder":
        labels, indices = index_major_order(COUNTS)
        paths = [f"{bundle.classes[k]}/{i:08d}.png" for k, i in zip(labels, indices, strict=True)]
        for number, part in enumerate(block["written"]["parts"]):
            mine = paths[number * block["plan"]["part_images"] :][: block["plan"]["part_images"]]
            lines = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in mine)
            assert part["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
            assert part["bytes"] == sum(len(files[path]) for path in mine)
    else:
        assert set(listed) == set(files) - {"dataset.json"}


def test_a_small_set_is_a_prefix_of_a_large_one(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path / "small", counts=(5, 5, 5))
    generate(bundle, tmp_path / "large", counts=(9, 9, 9))
    small, large = tree(tmp_path / "small"), tree(tmp_path / "large")
    pngs = {name: data for name, data in small.items() if name.endswith(".png")}
    assert len(pngs) == 15 and all(large[name] == data for name, data in pngs.items())


def test_start_continues_another_set(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path / "both", counts=(9, 9, 9))
    generate(bundle, tmp_path / "rest", counts=(4, 4, 4), start=5)
    both, rest = tree(tmp_path / "both"), tree(tmp_path / "rest")
    assert rest["one/00000005.png"] == both["one/00000005.png"]
    assert "one/00000004.png" not in rest and "one/00000008.png" in rest


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_call_again_touches_nothing(bundle: Bundle, tmp_path: Path, format: str) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS, format=format)
    before, files = identities(tmp_path / "set"), tree(tmp_path / "set")
    summary = generate(bundle, tmp_path / "set", counts=COUNTS, format=format)
    assert (summary.images_drawn, summary.bytes_written, summary.complete) == (0, 0, True)
    assert identities(tmp_path / "set") == before and tree(tmp_path / "set") == files


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_share_a_folder_and_end_in_the_same_bytes(
    bundle: Bundle, tmp_path: Path, format: str, shards: int
) -> None:
    sizes: dict[str, Any] = {} if format == "imagefolder" else {"shard_images": 90}
    generate(bundle, tmp_path / "one", counts=MANY, format=format, **sizes)
    done = [
        generate(bundle, tmp_path / "many", counts=MANY, format=format, shard=(i, shards), **sizes).complete
        for i in reversed(range(shards))
    ]
    assert done == [False] * (shards - 1) + [True]
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


@pytest.mark.parametrize("format", FORMATS)
def test_a_lost_file_is_drawn_again(bundle: Bundle, tmp_path: Path, format: str) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS, format=format)
    files, before = tree(tmp_path / "set"), identities(tmp_path / "set")
    lost = next(name for name in files if name.endswith((".png", ".npz", "images.npy")))
    (tmp_path / "set" / lost).unlink()
    summary = generate(bundle, tmp_path / "set", counts=COUNTS, format=format)
    assert summary.complete and summary.images_drawn > 0
    assert tree(tmp_path / "set") == files
    after = identities(tmp_path / "set")
    assert {name for name in before if before[name] != after[name]} == {lost}


def test_an_altered_image_is_named(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS)
    image = tmp_path / "set" / "one" / "00000003.png"
    image.write_bytes(b"mine")
    with pytest.raises(OutputError) as caught:
        generate(bundle, tmp_path / "set", counts=COUNTS)
    assert str(caught.value) == (
        f"{image} is not what this set's plan draws: it was altered or is another file; "
        "move it away and run the same command again."
    )
    image.unlink()
    assert generate(bundle, tmp_path / "set", counts=COUNTS).complete


def test_another_plan_is_refused_and_replaced_only_on_request(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "set"
    generate(bundle, out, counts=COUNTS, seed=1)
    files = tree(out)
    for change, words in (
        ({"seed": 2}, "seed 1 instead of 2"),
        ({"counts": (1, 1, 1)}, "115 images instead of 3"),
        ({"start": 1}, "start 0 instead of 1"),
        ({"format": "npz"}, "format imagefolder instead of npz"),
    ):
        with pytest.raises(OutputError) as caught:
            generate(bundle, out, **({"counts": COUNTS, "seed": 1} | change))
        assert str(caught.value) == (
            f"{out} holds another set ({words}): choose another folder, or use --overwrite to replace that set."
        )
    assert tree(out) == files
    (out / "notes.txt").write_text("keep me")
    (out / "one" / "mine.txt").write_text("keep me too")
    with pytest.raises(OutputError, match="holds 'one/mine.txt', in the way of the new set and not of an"):
        generate(bundle, out, counts=(1, 1, 1), seed=2, overwrite=True)
    assert (out / "one" / "mine.txt").exists()
    (out / "one" / "mine.txt").unlink()
    assert generate(bundle, out, counts=(1, 1, 1), seed=2, overwrite=True).complete
    assert set(tree(out)) >= {"notes.txt", "zero/00000000.png", "one/00000000.png", "two/00000000.png"}
    assert "zero/00000001.png" not in tree(out)
    assert generate(bundle, out, counts=(2, 0, 0), format="npz", overwrite=True).complete
    assert {"notes.txt", "train.npz"} <= set(tree(out)) and not (out / "zero").exists()


def test_overwrite_of_the_same_plan_resumes(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS)
    before = identities(tmp_path / "set")
    assert generate(bundle, tmp_path / "set", counts=COUNTS, overwrite=True).images_drawn == 0
    assert identities(tmp_path / "set") == before


def test_foreign_files_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError) as caught:
        generate(bundle, tmp_path, counts=COUNTS)
    assert str(caught.value) == (
        f"{tmp_path} already holds 'thesis.tex' and no set of ours: choose an empty folder, "
        "or use --overwrite to write beside what is there."
    )
    assert tree(tmp_path) == {"thesis.tex": b"years of work"}
    assert generate(bundle, tmp_path, counts=COUNTS, overwrite=True).complete
    assert generate(bundle, tmp_path, counts=COUNTS).images_drawn == 0


def test_the_card_is_looked_at_like_any_other_file(bundle: Bundle, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    generate(bundle, out, counts=COUNTS)
    whole = tree(out)
    (out / "README.md").unlink()
    assert generate(bundle, out, counts=COUNTS).images_drawn == 0
    assert tree(out) == whole
    for name in ("README.md", "croissant.json"):
        longer, other = whole[name] + b"x", bytes([whole[name][0] ^ 1]) + whole[name][1:]
        for altered in (longer, other):
            (out / name).write_bytes(altered)
            with pytest.raises(OutputError) as caught:
                generate(bundle, out, counts=COUNTS)
            assert str(caught.value) == (
                f"{out}/{name} is not what this set's plan draws: it was altered or is another file; "
                "move it away and run the same command again."
            )
            assert (out / name).read_bytes() == altered
        (out / name).unlink()
        elsewhere.write_text("years of work")
        (out / name).symlink_to(elsewhere)
        with pytest.raises(OutputError, match="is a link, which dim does not follow there"):
            generate(bundle, out, counts=COUNTS)
        assert elsewhere.read_text() == "years of work"
        (out / name).unlink()
        generate(bundle, out, counts=COUNTS)
        assert tree(out) == whole


def test_nothing_is_removed_where_a_file_is_in_the_way_of_a_new_set(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, counts=COUNTS)
    (tmp_path / "dataset.json").write_text("{")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="in the way of the new set and not of an earlier one: move them away first"):
        generate(bundle, tmp_path, counts=COUNTS, overwrite=True)
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith(".dim/")} == before


def test_a_link_is_not_followed(bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    generate(bundle, elsewhere, counts=(1, 1, 1))
    out = tmp_path / "set"
    generate(bundle, out, counts=(1, 1, 1))
    (out / "one" / "00000000.png").unlink()
    (out / "one").rmdir()
    (out / "one").symlink_to(elsewhere / "one")
    with pytest.raises(OutputError, match="set/one is a link, which dim does not follow there"):
        generate(bundle, out, counts=(2, 2, 2), overwrite=True)
    assert (elsewhere / "one" / "00000000.png").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"plan": 1}', b'{"format_version": 1, "plan": {}}'])
def test_a_malformed_dataset_json_is_refused(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(OutputError, match="dataset.json"):
        generate(bundle, tmp_path, counts=COUNTS)
    assert (tmp_path / "dataset.json").read_bytes() == content
    assert generate(bundle, tmp_path, counts=COUNTS, overwrite=True).complete


def test_a_newer_format_is_named(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"format_version": 2, "plan": {}}')
    with pytest.raises(OutputError, match="has format version 2 and was made by a newer dim"):
        generate(bundle, tmp_path, counts=COUNTS)


def test_out_that_is_a_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file is a file; name a folder for the set"):
        generate(bundle, tmp_path / "file", counts=COUNTS)
    with pytest.raises(OutputError, match="file is a file; name a folder for the set"):
        generate(bundle, tmp_path / "file" / "set", counts=COUNTS)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError) as caught:
        generate(bundle, tmp_path / "set", counts=COUNTS)
    assert str(caught.value) == (
        f"{tmp_path}/set cannot be written ({os.strerror(code)}): choose another folder or fix its permissions."
    )


def test_a_second_writer_of_a_shard_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "set"
    generate(bundle, out, counts=MANY, shard=(0, 2))
    held = os.open(out / ".dim" / "locks" / "shard-1-of-2", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(OutputError) as caught:
        generate(bundle, out, counts=MANY, shard=(1, 2))
    assert str(caught.value) == (f"Shard 1/2 of {out} is being written by another process: wait for it, or stop it.")
    os.close(held)
    assert generate(bundle, out, counts=MANY, shard=(1, 2)).complete


def test_the_engine_of_the_plan_is_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(tiny_bundle, engine="fake") as fake:
        generate(fake, tmp_path / "set", counts=MANY, shard=(0, 2))
    with open_bundle(tiny_bundle, engine="onnxruntime-cpu") as other:
        with pytest.raises(OutputError, match="engine name fake instead of onnxruntime-cpu"):
            generate(other, tmp_path / "set", counts=MANY, shard=(1, 2))
    said: list[str] = []
    with Bundle(tiny_bundle) as automatic:
        summary = generate(automatic, tmp_path / "set", counts=MANY, shard=(1, 2), say=said.append)
    assert summary.complete and summary.engine == "fake (fake 1, cpu, fp32)"
    with open_bundle(tiny_bundle, engine="fake") as fake:
        generate(fake, tmp_path / "one", counts=MANY)
    assert tree(tmp_path / "one") == tree(tmp_path / "set")


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ((FakeEngine, "version", "fake 2"), "engine version fake 1 instead of fake 2"),
        ((ImageFolder, "encoder", lambda self: "Pillow 1"), f"encoder {encoder_version()} instead of Pillow 1"),
    ],
)
def test_another_engine_or_encoder_is_refused_and_begins_anew_only_on_request(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: tuple[Any, str, Any], difference: str
) -> None:
    out = tmp_path / "set"
    generate(bundle, out, counts=MANY, shard=(0, 2))
    monkeypatch.setattr(*changed)
    for attempt in (generate, estimate_set):
        with pytest.raises(OutputError) as caught:
            attempt(bundle, out, counts=MANY, shard=(1, 2))
        assert str(caught.value) == (
            f"The set in {out} was begun with {difference}, and the rest would not be the same bytes: "
            "go on with that, or use --overwrite to start anew."
        )
    assert not estimate_set(bundle, out, counts=MANY, overwrite=True).resumes
    summary = generate(bundle, out, counts=MANY, overwrite=True)
    assert summary.complete and summary.images_drawn == sum(MANY)
    monkeypatch.undo()
    # A set that is complete needs neither any more.
    assert generate(bundle, out, counts=MANY).images_drawn == 0


def test_real_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(tiny_bundle, engine="onnxruntime-cpu", threads=1) as bundle:
        generate(bundle, tmp_path / "set", counts=(3, 3, 3), format="npz")
        labels, indices = index_major_order((3, 3, 3))
        images = np.load(tmp_path / "set" / "train.npz")["images"]
        assert np.array_equal(images, bundle.sample(labels, indices))


def test_a_padded_engine_draws_in_its_batch(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, tmp_path / "free", counts=COUNTS, format="npz")
        sizes: list[int] = []
        run = FakeEngine.run

        def noted(self: FakeEngine, latents: Any, labels: Any) -> Any:
            sizes.append(len(labels))
            return run(self, latents, labels)

        monkeypatch.setattr(FakeEngine, "batch", 48)
        monkeypatch.setattr(FakeEngine, "run", noted)
        generate(bundle, tmp_path / "padded", counts=COUNTS, format="npz")
        assert sizes == [48, 48, 19]
        assert (tmp_path / "padded/train.npz").read_bytes() == (tmp_path / "free/train.npz").read_bytes()


def test_progress_counts_up(bundle: Bundle, tmp_path: Path) -> None:
    seen: list[tuple[str, float, float | None, str]] = []
    summary = generate(bundle, tmp_path / "set", counts=COUNTS, progress=lambda *state: seen.append(state))
    assert seen[0][:3] == ("generating", 0, 115) and seen[0][3].endswith(" images/s, 0 B written")
    assert seen[-1][:3] == ("generating", 115, 115)
    assert seen[-1][3].endswith(f" images/s, {format_units(summary.bytes_written, 'B')} written")
    assert [done for _, done, _, _ in seen] == sorted(done for _, done, _, _ in seen)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"counts": (1, 1)}, "give one number for each of 3 classes"),
        ({"counts": (0, 0, 0)}, "at least one of them above 0"),
        ({"counts": (-1, 1, 1)}, "images are counted from 0"),
        ({"counts": (1, 1, 1), "seed": -1}, "The seed is -1"),
        ({"counts": (1, 1, 1), "start": 2**32}, r"a whole number from 0 to 2\*\*32 - 1"),
        ({"counts": (1, 1, 1), "format": "gif"}, "There is no format 'gif'; there are imagefolder, npz, npy"),
        ({"counts": (2, 1, 1), "start": 2**32 - 1}, "reach past index"),
        ({"counts": (1, 1, 1), "shard": (2, 2)}, "shards are counted from 0/2 to 1/2"),
        ({"counts": (1, 1, 1), "shard": (0, 0)}, "The shard is 0/0"),
        ({"counts": (1, 1, 1), "shard": (-1, 2)}, "The shard is -1/2"),
        ({"counts": (1, 1, 1), "shard_images": 5}, "The format imagefolder has no shards"),
        ({"counts": (1, 1, 1), "format": "npz", "shard_images": 0}, "A shard of 0 images"),
    ],
)
def test_bad_values_leave_nothing_behind(bundle: Bundle, tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadValueError, match=words):
        generate(bundle, tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_class_names_that_cannot_be_folders(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "b.dim", classes=("T-shirt/top", "bag"))
    with open_bundle(path, engine="fake") as bundle:
        with pytest.raises(BadValueError, match="The class 'T-shirt/top' cannot be the name of a folder"):
            generate(bundle, tmp_path / "set", counts=(1, 1))
        generate(bundle, tmp_path / "npz", counts=(1, 1), format="npz")
    assert np.load(tmp_path / "npz/train.npz")["classes"].tolist() == ["T-shirt/top", "bag"]
