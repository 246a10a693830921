"""Students: they learn, one seed gives one result, recipes are checked, soft labels teach."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dim.data.load import ImageSet, load_data
from dim.evaluation.images import fixed_images, real_set
from dim.runtime.errors import BadValueError
from dim.students.recipes import CONDENSATION, DEFAULT, PUBLISHED, Recipe, resolve_recipe
from dim.students.train import (
    Batch,
    Normalizer,
    StudentSpec,
    choose_precision,
    measure_accuracy,
    prepare,
    train_student,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_data("digits")


def spec_for(data: ImageSet, recipe: Recipe, arch: str = "convnet3", width: int = 16) -> StudentSpec:
    return StudentSpec(
        arch=arch,
        width=width,
        num_classes=len(data.classes),
        channels=data.channels,
        image_px=data.height,
        mean=data.mean,
        std=data.std,
        recipe=recipe,
        precision="fp32",
    )


def batches_of(data: ImageSet, ipc: int, seed: int = 0) -> Iterator[Batch]:
    return fixed_images(*real_set(data, ipc, seed), 64, seed, CPU, None).batches


@pytest.mark.slow
def test_a_student_learns_digits_from_real_images(digits: ImageSet) -> None:
    spec = spec_for(digits, resolve_recipe("default", "digits"))
    student, loss = train_student(spec, batches_of(digits, 50), 120, seed=0, device=CPU)
    normalize = Normalizer(digits.mean, digits.std, CPU)
    assert not student.training and np.isfinite(loss)
    assert measure_accuracy(student, digits.test_images, digits.test_labels, normalize, CPU) > 85


@pytest.mark.parametrize(("arch", "precision"), [("convnet3", "bf16"), ("resnet10-half", "fp32")])
def test_one_seed_gives_one_student_and_another_seed_another(digits: ImageSet, arch: str, precision: str) -> None:
    spec = replace(spec_for(digits, resolve_recipe("default", "digits"), arch, 8), precision=precision)

    def weights(seed: int) -> torch.Tensor:
        torch.rand(1)  # the global generator moves, and must not matter
        student, _ = train_student(spec, batches_of(digits, 2), 3, seed=seed, device=CPU)
        return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_training_leaves_the_global_random_state_alone(digits: ImageSet) -> None:
    before = torch.get_rng_state()
    train_student(spec_for(digits, DEFAULT), batches_of(digits, 1), 1, seed=3, device=CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_every_step_takes_one_batch_and_reports_once(digits: ImageSet) -> None:
    taken, reported = [], []

    def counted() -> Iterator[Batch]:
        for batch in batches_of(digits, 2):
            taken.append(len(batch[1]))
            yield batch

    train_student(spec_for(digits, DEFAULT), counted(), 5, seed=0, device=CPU, progress=reported.append)
    assert taken == [20] * 5 and reported == [1, 2, 3, 4, 5]


def test_soft_labels_pull_the_student_to_the_teacher(digits: ImageSet) -> None:
    images, labels = real_set(digits, 5, 0)
    wrong = np.full((len(labels), 10), -6, np.float32)
    wrong[:, 3] = 6  # the teacher calls everything a three

    training = fixed_images(images, labels, 64, 0, CPU, lambda _: wrong)
    student, _ = train_student(spec_for(digits, DEFAULT), training.batches, 30, seed=0, device=CPU)
    pixels = Normalizer(digits.mean, digits.std, CPU)(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert (student(pixels).argmax(dim=1) == 3).all()
    assert training.data_bytes == images.nbytes + 2 * wrong.size


def test_accuracy_is_the_share_of_right_answers_over_all_batches(
    digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = train_student(spec_for(digits, DEFAULT), batches_of(digits, 5), 20, seed=0, device=CPU)
    normalize = Normalizer(digits.mean, digits.std, CPU)
    pixels = torch.from_numpy(digits.test_images).permute(0, 3, 1, 2) / 255
    right = (student(normalize(pixels)).argmax(dim=1).numpy() == digits.test_labels).mean() * 100
    monkeypatch.setattr("dim.students.train.TEST_BATCH_PIXELS", 64 * 17)
    assert measure_accuracy(student, digits.test_images, digits.test_labels, normalize, CPU) == pytest.approx(
        right, abs=1e-9
    )


def test_black_comes_into_view_before_normalising_and_the_mean_after() -> None:
    images = torch.full((400, 1, 8, 8), 200, dtype=torch.uint8)
    normalize = Normalizer([0.5], [0.25], CPU)
    lowest = {
        fill: prepare(images, normalize, replace(DEFAULT, augment="crop", fill=fill), None).min().item()
        for fill in ("black", "mean")
    }
    assert lowest == {"black": -2.0, "mean": 0.0}


def test_one_cycle_rises_and_falls_to_almost_nothing() -> None:
    rates = [DEFAULT.lr_at(step, 100) for step in range(100)]
    assert max(rates) == rates[19] == DEFAULT.lr
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] <= 0.02 * DEFAULT.lr
    assert {PUBLISHED.lr_at(step, 100) for step in range(100)} == {0.01}
    assert 0 < DEFAULT.lr_at(0, 1) <= DEFAULT.lr


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_rate_of_the_condensation_code_falls_to_a_tenth_at_the_half(steps: int) -> None:
    rates = [CONDENSATION.lr_at(step, steps) for step in range(steps)]
    half = -(-steps // 2)
    assert rates == [0.01] * half + [0.1 * 0.01] * (steps - half)


def test_recipes_are_found_by_name_and_checked() -> None:
    assert resolve_recipe("default", "cifar10").augment.startswith("flip")
    assert "flip" not in resolve_recipe("default", "mnist").augment
    assert resolve_recipe("condensation", "cifar10") == CONDENSATION and CONDENSATION.augment.count("|") == 5
    digits = resolve_recipe("condensation", "svhn")
    assert digits.augment == "color|crop|cutout|scale|rotate" and digits.batch_size == 256
    assert resolve_recipe(PUBLISHED, "mnist") is PUBLISHED is resolve_recipe("published", "mnist")
    names = "default, published, reference, condensation and condensation-all"
    with pytest.raises(BadValueError, match=rf"^There is no student recipe 'best'; there are {names}\.$"):
        resolve_recipe("best", "mnist")
    with pytest.raises(BadValueError, match=r"^Recipe.momentum is 1.5; it must lie between 0 and 0.9999\.$"):
        replace(DEFAULT, momentum=1.5)
    names = "constant, step, onecycle"
    with pytest.raises(BadValueError, match=rf"^Recipe.schedule is 'cosine'; it must be one of {names}\.$"):
        replace(DEFAULT, schedule="cosine")
    assert choose_precision("bf16", CPU) == "bf16" and choose_precision("auto", CPU) in ("fp32", "bf16")


def test_smoothed_hard_labels_are_torchs_own(digits: ImageSet) -> None:
    images, labels = real_set(digits, 1, 0)
    spec = replace(spec_for(digits, replace(DEFAULT, label_smoothing=0.2)), width=4)
    _, loss = train_student(spec, fixed_images(images, labels, 64, 0, CPU, None).batches, 1, seed=0, device=CPU)
    untrained, _ = train_student(spec, iter(()), 0, seed=0, device=CPU)
    inputs = prepare(
        torch.from_numpy(images).permute(0, 3, 1, 2), Normalizer(digits.mean, digits.std, CPU), DEFAULT, None
    )
    expected = F.cross_entropy(untrained.train()(inputs), torch.from_numpy(labels), label_smoothing=0.2)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
