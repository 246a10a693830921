"""Archives of real images: what they hold, how large they are, and which one is chosen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quick_evaluations import run_evaluation
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle

from dim.data.load import ImageSet
from dim.evaluation.archive import (
    CODECS,
    LOSSLESS,
    Archive,
    decode_archive,
    encode_archive,
    find_candidates,
    images_that_fit,
    list_codecs,
    pack_archive,
)
from dim.evaluation.context import read_or_pack
from dim.evaluation.plan import bundle_bytes
from dim.evaluation.results import aggregate
from dim.runtime.bundle_format.accepted_file import write_accepted
from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import DataError


def smooth_images(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """Ramps whose direction and brightness differ, which every codec can draw."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:height, :width] / max(height, width)
    slopes = rng.uniform(0, 100, (count, 2, 1, 1, 1))
    images = 20 + slopes[:, 0] * down[..., None] + slopes[:, 1] * across[..., None]
    return np.repeat(images.round().astype(np.uint8), channels, axis=3)


def enlarge(data: ImageSet, times: int) -> ImageSet:
    """As many times the images, each with noise of its own, so that they do not fit into a small bundle."""
    rng = np.random.default_rng(0)
    images = np.tile(data.train_images, (times, 1, 1, 1))
    noisy = (images + rng.integers(0, 40, images.shape)).clip(0, 255).astype(np.uint8)
    return replace(data, train_images=noisy, train_labels=np.tile(data.train_labels, times))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (9, 13, 3)])
def test_an_archive_gives_back_every_image_in_its_place(codec: str, shape: tuple[int, int, int]) -> None:
    assert codec in list_codecs()
    images = smooth_images(11, *shape)
    archive = Archive(codec=codec, quality=90, images_per_class=8, max_bytes=10**6)
    packed = encode_archive(images, [8, 0, 3], archive)
    assert packed == encode_archive(images, [8, 0, 3], archive)
    decoded, labels = decode_archive(packed, shape)
    assert labels.tolist() == [0] * 8 + [2] * 3 and decoded.shape == images.shape
    difference = np.abs(decoded.astype(int) - images)
    assert difference.max() <= (0 if codec == LOSSLESS else 12)


def test_a_mosaic_that_would_be_too_large_becomes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.evaluation.archive.MOSAIC_PX", 20)
    images = smooth_images(11, 8, 8, 1)  # four to a mosaic
    packed = encode_archive(images, [11], Archive(codec=LOSSLESS, quality=100, images_per_class=11, max_bytes=1))
    assert np.array_equal(decode_archive(packed, (8, 8, 1))[0], images)
    assert packed.count(b"WEBP") == 3


def test_an_archive_is_never_larger_than_asked(data: ImageSet) -> None:
    larger = enlarge(data, 20)
    archive = Archive(codec="jpeg", quality=40, images_per_class=600, max_bytes=6000)
    packed = pack_archive(larger, archive, seed=1)
    assert 5000 < len(packed) <= 6000
    _, labels = decode_archive(packed, (8, 8, 1))
    assert len(set(np.bincount(labels).tolist())) == 1
    assert packed != pack_archive(larger, archive, seed=2)
    # Less than one image per class is nothing to train on.
    least = pack_archive(larger, replace(archive, max_bytes=10), seed=1)
    assert len(decode_archive(least, (8, 8, 1))[1]) == 3


@pytest.mark.slow
def test_candidates_trade_images_for_quality_and_fit(data: ImageSet) -> None:
    larger = enlarge(data, 20)
    candidates = find_candidates(larger, 6000)
    numbers = [archive.images_per_class for archive in candidates]
    assert numbers == sorted(numbers, reverse=True) and 2 <= len(candidates) <= 5
    assert candidates[-1].codec == LOSSLESS
    for archive in candidates:
        assert len(pack_archive(larger, archive, 0)) <= 6000
    assert find_candidates(larger, 10) == []
    (everything,) = find_candidates(larger, 10**6)
    assert (everything.codec, everything.images_per_class) == (LOSSLESS, 600)


def test_a_broken_archive_is_made_anew(data: ImageSet, tmp_path: Path) -> None:
    archive = Archive(codec="webp", quality=50, images_per_class=5, max_bytes=10**5)
    packed = read_or_pack(data, archive, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("webp-q50-5-seed0-") and path.read_bytes() == packed
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"^The archive of real images cannot be read: "):
        decode_archive(path.read_bytes(), (8, 8, 1))
    assert read_or_pack(data, archive, 0, tmp_path) == packed == path.read_bytes()


def test_a_stream_needs_its_generator_and_what_says_which_candidates_it_draws(tmp_path: Path) -> None:
    files = {
        "accepted.bin": write_accepted(1, np.arange(24).reshape(3, 8) % 4 > 0),
        "latents.npz": write_fixed_latents(np.zeros((3, 7, 16), np.float32)),
        "teacher.onnx": teacher_graph(),
    }
    manifest = load_manifest(build_tiny_bundle(tmp_path / "tiny.dim", precisions=("fp32", "fp16"), extra_files=files))
    sizes = {name: file.size_bytes for name, file in manifest.files.items()}
    assert bundle_bytes(manifest, "fp16", soft=False) == sizes["generator.fp16.onnx"] + sizes["accepted.bin"]
    assert bundle_bytes(manifest, "bf16", soft=True) == sum(
        sizes[name] for name in ("generator.fp32.onnx", "accepted.bin", "teacher.onnx")
    )
    plain = load_manifest(build_tiny_bundle(tmp_path / "plain.dim"))
    assert bundle_bytes(plain, "fp32", soft=False) == plain.files["generator.fp32.onnx"].size_bytes


@pytest.mark.slow
def test_the_best_archive_in_the_bytes_of_the_file_stands_beside_every_stream(data: ImageSet, tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "tiny.dim", extra_files={"teacher.onnx": teacher_graph()})
    smaller = onnx.load(path / "generator.fp32.onnx")
    smaller.doc_string = "x" * 500  # any other size than that of fp32
    update_bundle(path, add_files={"generator.int8.onnx": smaller.SerializeToString(deterministic=True)})
    files = load_manifest(path).files
    size, teacher = files["generator.int8.onnx"].size_bytes, files["teacher.onnx"].size_bytes
    assert size != files["generator.fp32.onnx"].size_bytes
    larger = enlarge(data, 40)
    options: dict[str, Any] = {"ipcs": (100,), "seeds": (0,), "modes": ("stream",), "labels": ("hard", "soft")}
    options["engine"] = EngineOptions(precision="int8")
    said: list[str] = []
    results = run_evaluation(path, larger, tmp_path / "eval", options, say=said.append).results
    kept = {(r.cell.subject, r.cell.labels): r for r in results}
    assert kept["generated, int8", "hard"].data_bytes == size
    assert kept["generated, int8", "soft"].data_bytes == size + teacher
    hard, soft = (kept["archive, int8", labels] for labels in ("hard", "soft"))
    assert 0.6 * size < hard.data_bytes <= size and soft.data_bytes == hard.data_bytes + teacher
    assert hard.cell.archive == soft.cell.archive and hard.cell.archive.max_bytes == size
    assert hard.steps == kept["generated, int8", "hard"].steps
    row = next(row for row in aggregate([hard]))
    assert row["bits_per_class"] == round(8 * hard.data_bytes / 3)
    assert row["images_per_class"] == hard.cell.archive.images_per_class
    assert row["archive"]["codec"] in CODECS
    choice = json.loads((tmp_path / "eval" / "archive" / "archive.json").read_text())
    means = {row["images_per_class"]: row["accuracy_mean"] for row in choice["rows"]}
    assert len(means) > 1 and means[hard.cell.archive.images_per_class] == max(means.values())
    assert said[-1].startswith("generated: ") and any("Hold-out accuracy of " in sentence for sentence in said)
    # The same call takes the choice from its file.
    said.clear()
    again = run_evaluation(path, larger, tmp_path / "eval", options, say=said.append).results
    assert [r.accuracy for r in again] == [r.accuracy for r in results]
    assert not any("Looking for" in sentence for sentence in said)


@pytest.mark.slow
def test_a_time_limit_may_end_the_choice(data: ImageSet, bundle: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ipcs": (5,), "seeds": (0,), "modes": ("stream",), "time_limit_s": 0.0}
    said: list[str] = []
    stopped = run_evaluation(bundle, enlarge(data, 60), tmp_path, options, say=said.append)
    assert not stopped.finished and "students untrained: the same command goes on." in said[-1]


def test_no_archive_is_trained_on_where_everything_fits(data: ImageSet, bundle: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"ipcs": (1,), "seeds": (0,), "modes": ("stream",)}
    results = run_evaluation(bundle, data, tmp_path, options, say=said.append).results
    assert [r.cell.subject for r in results] == ["generated", "real"]
    assert any(sentence.endswith("without loss, so `real` stands for the archive too.") for sentence in said)


def test_equal_bytes_of_unequal_classes_are_as_many_images_as_fit() -> None:
    assert [images_that_fit((100, 100), total) for total in (0, 1, 2, 21, 200, 500)] == [0, 0, 1, 10, 100, 100]
    counts = (1000, 100, 3)
    for total in (2, 3, 50, 103, 500, 1102, 1103):
        most = images_that_fit(counts, total)
        taken = sum(min(count, most) for count in counts)
        assert taken <= total < sum(min(count, most + 1) for count in counts) or most == max(counts)
    assert images_that_fit(counts, 603) == 500
