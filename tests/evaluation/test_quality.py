"""Quality and copies, on data whose answer is known: equal sets, a copied set, a lost class, a shifted set."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import prdc
import pytest
import torch
from copying_bundle import build_copying_bundle
from numpy.typing import NDArray
from quick_evaluations import QUICK_STUDENTS, divide_options, striped_images
from tiny_bundle import build_tiny_bundle

from dim.data.load import ImageSet
from dim.evaluation.protocol import EvalProtocol
from dim.evaluation.quality.assess import PAIRS_NAME, assess, draw_images
from dim.evaluation.quality.copying import MIN_IMAGES, Copying, measure_copying, rank_auc, write_verdict
from dim.evaluation.quality.distances import find_nearest, flatten_pixels, neighbour_radii, squared_distances
from dim.evaluation.quality.features import hold_out, load_extractor, train_extractor
from dim.evaluation.quality.fidelity import compare_neighbourhoods, frechet_distance, kernel_distance
from dim.evaluation.subjects import Subject
from dim.runtime.bundle import open_bundle
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.errors import BadValueError, DataError

CPU = torch.device("cpu")
Rows = NDArray[np.float32]


def normal(count: int, seed: int, shift: float = 0.0, features: int = 8) -> Rows:
    return (np.random.default_rng(seed).normal(0, 1, (count, features)) + shift).astype(np.float32)


def classes_of(count: int, seed: int, kept: int = 4) -> Rows:
    """Images of classes that lie far apart, the last ones left out."""
    rows = normal(count, seed)
    rows[np.arange(count), np.arange(count) % kept] += 30
    return rows


def slow_neighbourhoods(real: Rows, generated: Rows, k: int) -> dict[str, float]:
    """The formulas of the paper, image by image."""

    def radius(rows: Rows, index: int) -> float:
        return sorted(float(np.linalg.norm(rows[index] - row)) for i, row in enumerate(rows) if i != index)[k - 1]

    real_radii, generated_radii = ([radius(rows, i) for i in range(len(rows))] for rows in (real, generated))
    inside = [[float(np.linalg.norm(x - y)) < r for x, r in zip(real, real_radii, strict=True)] for y in generated]
    recalled = [
        any(float(np.linalg.norm(x - y)) < r for y, r in zip(generated, generated_radii, strict=True)) for x in real
    ]
    covered = [any(column) for column in zip(*inside, strict=True)]
    return {
        "precision": float(np.mean([any(row) for row in inside])),
        "recall": float(np.mean(recalled)),
        "density": float(np.mean([sum(row) for row in inside])) / k,
        "coverage": float(np.mean(covered)),
    }


@pytest.mark.parametrize("shift", [0.0, 0.7, 5.0])
def test_neighbourhoods_are_those_of_the_library_and_of_the_formulas(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.quality.distances.ROWS", 7)
    real, generated = normal(60, 0), normal(45, 1, shift)
    found = compare_neighbourhoods(real, generated, CPU, k=3)
    assert found == pytest.approx(slow_neighbourhoods(real, generated, 3))
    assert found == pytest.approx(prdc.compute_prdc(real, generated, nearest_k=3))


def test_equal_distributions_are_close_in_every_number() -> None:
    real, others = normal(1500, 0), normal(1500, 1)
    kid, deviation = kernel_distance(real, others)
    assert abs(kid) < 0.05 and deviation < 0.1
    assert frechet_distance(real, others) < 0.1
    found = compare_neighbourhoods(real, others, CPU)
    assert min(found["precision"], found["recall"], found["coverage"]) > 0.9
    assert found["density"] == pytest.approx(1, abs=0.1)


def test_a_copied_set_is_at_no_distance() -> None:
    real = normal(700, 0)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    # Every image has its copy among the others, so the unbiased estimate lies a little below nothing.
    assert -0.05 < kernel_distance(real, real)[0] < 0
    assert compare_neighbourhoods(real, real, CPU) == pytest.approx(
        {"precision": 1, "recall": 1, "coverage": 1, "density": 1}, abs=0.25
    )


def test_a_lost_class_costs_recall_and_coverage_and_not_precision() -> None:
    real, without = classes_of(800, 0), classes_of(800, 1, kept=3)
    found = compare_neighbourhoods(real, without, CPU)
    assert found["precision"] > 0.85
    assert found["recall"] == pytest.approx(0.75, abs=0.1) and found["coverage"] == pytest.approx(0.75, abs=0.1)
    same = classes_of(800, 2)
    assert frechet_distance(real, without) > 20 * frechet_distance(real, same)
    assert kernel_distance(real, without)[0] > 20 * abs(kernel_distance(real, same)[0])


def test_one_image_again_and_again_is_precise_and_covers_nothing() -> None:
    real = normal(500, 0)
    found = compare_neighbourhoods(real, np.repeat(real[:1] * 0.1, 500, axis=0), CPU)
    assert found["precision"] == 1 and found["recall"] == 0 and found["coverage"] < 0.5


def test_a_shifted_set_is_as_far_as_it_was_shifted() -> None:
    real = normal(4000, 0)
    for shift in (1.0, 3.0):
        # The squared shift of eight features; the covariances are equal.
        assert frechet_distance(real, real + np.float32(shift)) == pytest.approx(8 * shift**2, rel=1e-4)
    far = compare_neighbourhoods(real[:500], real[500:1000] + 50, CPU)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    assert kernel_distance(real, real + 1)[0] > 1


def test_the_kernel_distance_is_the_mean_over_all_pairs() -> None:
    a, b = normal(6, 0, features=3).astype(np.float64), normal(6, 1, 0.5, features=3).astype(np.float64)

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    within = [np.mean([kernel(s[i], s[j]) for i in range(6) for j in range(6) if i != j]) for s in (a, b)]
    expected = within[0] + within[1] - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a.astype(np.float32), b.astype(np.float32))[0] == pytest.approx(expected, rel=1e-4)


def test_distances_in_parts_are_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.evaluation.quality.distances.ROWS", 4)
    monkeypatch.setattr("dim.evaluation.quality.distances.COLUMNS", 5)
    a, b = normal(10, 0), normal(13, 1)
    expected = np.linalg.norm(a[:, None] - b[None], axis=2)
    found = np.concatenate([part.numpy() for _, part in squared_distances(a, b, CPU)])
    assert np.allclose(found, expected**2, atol=1e-4)
    distances, places = find_nearest(a, b, CPU)
    assert np.allclose(distances, expected.min(axis=1), atol=1e-6) and np.array_equal(places, expected.argmin(axis=1))
    assert find_nearest(b[3:5], b, CPU)[0].tolist() == [0, 0]
    among = np.sort(np.linalg.norm(a[:, None] - a[None], axis=2), axis=1)
    assert np.allclose(neighbour_radii(a, 3, CPU).sqrt().numpy(), among[:, 3], atol=1e-3)


def test_pixels_are_searched_part_by_part_as_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6), np.uint8)
    wanted = flatten_pixels(pixels[::3].reshape(-1, 2, 3, 1))
    expected = find_nearest(wanted, flatten_pixels(pixels.reshape(-1, 2, 3, 1)), CPU)
    monkeypatch.setattr("dim.evaluation.quality.distances.COLUMNS", 7)
    found = find_nearest(wanted, pixels, CPU)
    assert found[1].tolist() == expected[1].tolist() == list(range(0, 40, 3)) and not found[0].any()
    far = find_nearest(wanted + 3, pixels, CPU)
    assert np.array_equal(far[0], find_nearest(wanted + 3, flatten_pixels(pixels.reshape(-1, 2, 3, 1)), CPU)[0])


def test_the_auc_counts_pairs() -> None:
    higher, lower = np.array([3.0, 1.0, 2.0]), np.array([2.0, 0.0])
    assert rank_auc(higher, lower) == pytest.approx((2 + 1 + 1.5) / 6)
    assert rank_auc(higher, higher) == 0.5


def copying_of(generated: Rows, of: Callable[[int, int], Rows] = normal) -> Copying:
    training, held_out = of(2000, 0), of(500, 1)
    members = np.arange(500)
    return measure_copying("pixels", generated, training, members, held_out, CPU)[0]


def test_images_of_the_same_distribution_are_no_copies() -> None:
    found = copying_of(normal(1000, 2))
    assert found.signs == () and abs(found.membership_auc - 0.5) < 0.04
    assert found.near_duplicates == pytest.approx(0.01, abs=0.01)
    assert found.generated_distance == pytest.approx(found.held_out_distance, rel=0.05)
    assert write_verdict([found]).startswith("No sign of copies: of 1,000 generated images ")


@pytest.mark.parametrize(("seed", "scale"), [(2, 0.3), (3, 0.3), (4, 0.6)])
def test_plain_images_are_close_to_everything_and_no_copies(seed: int, scale: float) -> None:
    found = copying_of(normal(1000, seed) * np.float32(scale))
    assert found.near_duplicates > 0.03 and found.signs == ()


def test_a_lost_class_and_a_shift_are_no_copies() -> None:
    lost = copying_of(classes_of(1000, 2, kept=3), of=classes_of)
    assert lost.signs == () and lost.near_duplicates == pytest.approx(0.01, abs=0.01)
    assert abs(lost.membership_auc - 0.5) < 0.04
    shifted = copying_of(normal(1000, 2, shift=5.0))
    assert shifted.signs == () and shifted.near_duplicates == 0
    assert shifted.generated_distance > 5 * shifted.held_out_distance


def test_copied_images_are_found_whether_all_are_copied_or_few() -> None:
    training = normal(2000, 0)
    noise = normal(1000, 5) * np.float32(0.01)
    found = copying_of(training[:1000] + noise)
    assert found.near_duplicates == 1 and found.membership_auc > 0.9 and len(found.signs) == 2
    # Thirty images that are none of the members, again and again; then one copy in ten images.
    few = copying_of(training[np.arange(1000) % 30 + 600] + noise)
    assert few.near_duplicates == 1 and few.expected_duplicates < 0.1 and few.signs
    mixed = np.where((np.arange(1000) % 10 == 0)[:, None], training[:1000] + noise, normal(1000, 2))
    assert copying_of(mixed.astype(np.float32)).signs
    assert write_verdict([found]).startswith(
        "The generator copies training images: of 1,000 generated images, 100.0 % are near duplicates of training "
        "images in pixels, where "
    )
    assert "too few to tell copies from chance" in write_verdict([replace(found, held_out=MIN_IMAGES - 1)])


@pytest.fixture(scope="module")
def stripes() -> ImageSet:
    train, test = striped_images(3000, 0), striped_images(600, 1)
    return ImageSet(
        name="stripes", classes=("zero", "one", "two"), train_images=train[0], train_labels=train[1],
        test_images=test[0], test_labels=test[1], licence="CC0-1.0", note="drawn for a test",
    )  # fmt: skip


def assess_bundle(path: Path, data: ImageSet, out: Path, said: list[str], **wanted: Any) -> dict[str, Any]:
    subject = Subject(name="generated", folder=path, manifest=load_manifest(path))
    execution = divide_options(QUICK_STUDENTS)[1]
    asked = EvalProtocol(**wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dim.evaluation.quality.features.STEPS", 60)
        return assess(subject, data, asked, execution, out, say=said.append, progress=lambda *_: None)


@pytest.mark.slow
def test_a_bundle_that_was_made_to_copy_is_caught(stripes: ImageSet, tmp_path: Path) -> None:
    path = build_copying_bundle(tmp_path / "copy.dim", stripes)
    with open_bundle(path) as bundle:
        drawn = draw_images(bundle, [40, 40, 40])
    rows = {image.tobytes() for image in stripes.train_images}
    assert all(image.tobytes() in rows for image in drawn) and len({image.tobytes() for image in drawn}) > 90
    found = assess_bundle(path, stripes, tmp_path / "eval", [], privacy=True)["privacy"]
    assert found["copies"] is True and found["verdict"].startswith("The generator copies training images: of ")
    assert found["pixels"]["near_duplicates"] == 1 and found["pixels"]["generated_distance"] == 0
    assert (tmp_path / "eval" / PAIRS_NAME).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_bundle_of_noise_is_no_copy_and_of_no_quality(stripes: ImageSet, tmp_path: Path) -> None:
    path, said = build_tiny_bundle(tmp_path / "tiny.dim"), list[str]()
    found = assess_bundle(path, stripes, tmp_path / "eval", said, quality=True, privacy=True)
    quality, privacy = found["quality"], found["privacy"]
    assert privacy["compared_by"] == quality["compared_by"]
    assert [privacy[space]["space"] for space in ("pixels", "features")] == ["pixels", "features"]
    assert privacy["copies"] is False and "No sign of copies" in privacy["verdict"]
    assert quality["generated"]["coverage"] < 0.2 < 0.8 < quality["real"]["coverage"]
    assert quality["generated"]["fd"] > 10 * quality["real"]["fd"]
    assert list(quality["per_class"]) == ["zero", "one", "two"]
    assert (
        quality["images"] == 300 and "which reaches" in quality["compared_by"] and quality["accuracy_of_features"] > 90
    )
    assert said == ["Comparing images of generated with real ones: quality and privacy."]
    # The second call reads the file.
    assert assess_bundle(path, stripes, tmp_path / "eval", said, quality=True)["quality"] == quality and len(said) == 1
    (kept,) = (tmp_path / "eval").glob("quality-*.json")
    assert json.loads(kept.read_text())["privacy"] == privacy


@pytest.mark.slow
def test_the_classifier_is_trained_once_and_has_not_seen_what_is_held_out(
    stripes: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.quality.features.STEPS", 5)
    held, steps = hold_out(stripes), list[int]()
    assert held.sum() == 300 and np.bincount(stripes.train_labels[held]).tolist() == [100] * 3
    first = train_extractor(stripes, tmp_path, CPU, lambda step, _: steps.append(step))
    again = train_extractor(stripes, tmp_path, CPU, lambda step, _: steps.append(step))
    assert steps == [1, 2, 3, 4, 5] and f"trained here on {2700:,} images" in first.description
    assert np.array_equal(first.extract(stripes.test_images[:9]), again.extract(stripes.test_images[:9]))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"half")
    train_extractor(stripes, tmp_path, CPU, lambda step, _: steps.append(step))
    assert len(steps) == 10


def test_features_of_ones_own_are_taken_by_name(
    stripes: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_features.py").write_text(
        "means = lambda images: images.mean(axis=(2, 3))\nflat = lambda images: images.mean()\nx = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    toy = load_extractor("toy_features:means")
    assert toy.description == "features by toy_features:means" and toy.accuracy is None
    assert np.allclose(toy.extract(stripes.test_images[:4]), stripes.test_images[:4].mean(axis=(2, 3)))
    path = build_tiny_bundle(tmp_path / "tiny.dim")
    found = assess_bundle(path, stripes, tmp_path / "eval", [], quality=True, features="toy_features:means")
    assert found["quality"]["compared_by"] == "features by toy_features:means"
    for name, message in {
        "toy_features": "it takes MODULE:FUNCTION, as in my_features:embed",
        "no_such_module:x": "is not to be had: No module named 'no_such_module'",
        "toy_features:y": "is not to be had: module 'toy_features' has no attribute 'y'",
        "toy_features:x": "is no function",
    }.items():
        with pytest.raises(BadValueError, match=message):
            load_extractor(name)
    with pytest.raises(BadValueError, match=r"returned the shape \[\] for 600 images; it must return finite numbers"):
        load_extractor("toy_features:flat").extract(stripes.test_images)


def test_too_few_test_images_are_said(stripes: ImageSet, tmp_path: Path) -> None:
    few = replace(stripes, test_images=stripes.test_images[:2], test_labels=stripes.test_labels[:2])
    with pytest.raises(DataError, match=r"^stripes has too few test images to compare with: at least one per cl"):
        assess_bundle(build_tiny_bundle(tmp_path / "tiny.dim"), few, tmp_path, [], quality=True)


def test_pixels_become_rows() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    assert flatten_pixels(images).shape == (2, 12) and flatten_pixels(images)[1, 0] == np.float32(12 / 255)
