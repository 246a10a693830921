"""The last choices of a distillation, against slow definitions of what they minimise."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from quick_runs import QUICK, quick
from small_images import make_images

from dim.augment import augment
from dim.config import DeploymentConfig
from dim.data.load import ImageSet
from dim.distillation.distill import describe_run, distill
from dim.distillation.extractors import FeatureExtractor
from dim.distillation.feature_targets import FeatureTarget, make_target, measure_moments
from dim.distillation.herding import herd
from dim.distillation.latent_std import class_weights
from dim.distillation.pool import PoolMember
from dim.distillation.refinement import UNTRAINED_EXTRACTORS, Refinement
from dim.distillation.session import Session
from dim.distillation.set_learners import LEARNER_STEPS, SetLearners
from dim.execution.device_data import DeviceData, to_signed
from dim.networks.classifiers import build_classifier
from dim.presets import preset
from dim.runs.record import ImageSpec
from dim.runtime.errors import BadValueError, DivergedError


def energy(points: list[int], to_real: torch.Tensor, between: torch.Tensor) -> float:
    """Energy distance of a chosen set to the real images, up to the constant of the real images."""
    n = len(points)
    across = sum(float(to_real[p]) for p in points) / n
    within = sum(float(between[p, q]) for p in points for q in points) / n**2
    return 2 * across - within


def test_herding_takes_the_best_next_candidate_at_every_step() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates, real = torch.randn(12, 3, generator=generator), torch.randn(50, 3, generator=generator)
    to_real = torch.cdist(candidates, real).mean(1)
    between = torch.cdist(candidates, candidates)
    picked = herd(to_real, between, 6).tolist()
    assert len(set(picked)) == 6
    for n in range(6):
        scores = {c: energy([*picked[:n], c], to_real, between) for c in range(12) if c not in picked[:n]}
        assert scores[picked[n]] == pytest.approx(min(scores.values()), abs=1e-5)


def test_a_herded_set_is_nearer_to_the_whole_than_a_random_one() -> None:
    generator = torch.Generator().manual_seed(1)
    candidates, real = torch.randn(400, 4, generator=generator), torch.randn(400, 4, generator=generator)
    to_real, between = torch.cdist(candidates, real).mean(1), torch.cdist(candidates, candidates)
    picked = herd(to_real, between, 50).tolist()
    for count in (1, 10, 50):
        sets = [torch.randperm(400, generator=generator)[:count].tolist() for _ in range(20)]
        random = [energy(points, to_real, between) for points in sets]
        assert energy(picked[:count], to_real, between) < min(random)


def test_every_candidate_may_be_taken() -> None:
    points = torch.randn(5, 2)
    assert sorted(herd(points.norm(dim=1), torch.cdist(points, points), 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([50, 50], [0.5, 0.5]),
        ([50, 1, 0], [1.0, 0.0, 0.0]),  # one image has no distance to another, so its class would decide alone
        ([31, 11], [0.75, 0.25]),
        ([1, 0, 1], [0.5, 0.0, 0.5]),
        ([5000, 1000], [0.5, 0.5]),  # as many are looked at
    ],
)
def test_classes_weigh_by_what_was_held_out(counts: list[int], weights: list[float]) -> None:
    assert class_weights(torch.tensor(counts)).tolist() == pytest.approx(weights)


@pytest.mark.slow
def test_a_run_chooses_its_latent_std_and_its_fixed_latents(tmp_path: Path) -> None:
    distill(make_images(), quick(), tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "deployment.json").read_text())
    assert set(chosen["energy_distances"]) == {"1", "1.2"}
    best = min(chosen["energy_distances"], key=lambda k: chosen["energy_distances"][k])
    assert chosen["latent_std"] == float(best)
    with np.load(tmp_path / "run" / "latents.npz") as archive:
        assert archive["latents"].shape == (3, 3, 8) and archive["latents"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architectures", "expected"),
    [(("mlp", "convnet3"), ["convnet3", "convnet3"]), (("mlp", "resnet10"), ["mlp", "resnet10"])],
)
def test_the_convnets_of_every_age_compare_the_latents_where_there_are_some(
    architectures: tuple[str, ...], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def herd_nothing(
        session: Session, network: torch.nn.Module, extractors: list[FeatureExtractor], latent_std: float, path: Path
    ) -> torch.Tensor:
        asked.extend(extractor.member.name for extractor in extractors)
        return torch.zeros(3, 3, 8)

    monkeypatch.setattr("dim.distillation.choices.herd_latents", herd_nothing)
    distill(make_images(), quick(**{"pool.architectures": architectures}), tmp_path / "run")
    assert asked == expected


def canvas(latents_NZ: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """A generator that can draw anything: the latents are the pixels."""
    return torch.tanh(latents_NZ).reshape(-1, 1, 8, 8)


def spec_of(data: ImageSet) -> ImageSpec:
    return describe_run(quick(), data).data.images


def untrained() -> list[PoolMember]:
    """Four ConvNets that were never trained."""
    data, members = make_images(), []
    for seed in range(4):
        torch.manual_seed(seed)
        members.append(PoolMember("convnet3", spec_of(data), 16).eval().requires_grad_(False))
    return members


def make_refinement(
    latents_KMZ: torch.Tensor,
    trained: Sequence[PoolMember],
    untrained: Sequence[PoolMember],
    data: DeviceData,
    *,
    steps: int,
    learners: int = 0,
) -> Refinement:
    config = DeploymentConfig(refine_steps=steps, refine_cross_entropy=0.2, refine_learners=learners)
    return Refinement(
        canvas, latents_KMZ, trained, untrained, data, config, policy="", seed=0, build_learner=new_learner
    )


def refine(latents_KMZ: torch.Tensor, steps: int = 150) -> tuple[torch.Tensor, DeviceData]:
    """Latents of the canvas for the test data's classes, moved to where `untrained` classifiers see them."""
    data = make_images()
    on_device = DeviceData(data.train_images, data.train_labels, 3, torch.device("cpu"))
    refinement = make_refinement(latents_KMZ, [], untrained(), on_device, steps=steps)
    for index in range(refinement.total):
        refinement.step(index)
    return refinement.result(), on_device


def features_of(images_NCHW: torch.Tensor) -> list[torch.Tensor]:
    """Features as ConvNets of other weights see them, `[3, N / 3, D]` each."""
    features = []
    for seed in range(5):
        torch.manual_seed(1000 + seed)
        with torch.no_grad():
            classifier = build_classifier("convnet3", 3, 1, 8, 16).eval()
            features.append(classifier.features(images_NCHW).unflatten(0, (3, -1)))
    return features


@pytest.mark.slow
def test_sets_of_one_and_ten_come_nearer_to_the_means_of_their_classes() -> None:
    start = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0))
    refined, data = refine(start)
    reals = features_of(to_signed(data.images.gather(torch.arange(len(data.labels_N)))))

    def distance(latents_KmZ: torch.Tensor) -> float:
        """Of the means, in parts of what lies between the classes."""
        found = []
        for real, drawn in zip(reals, features_of(canvas(latents_KmZ.flatten(0, 1), torch.empty(0))), strict=True):
            means = real.mean(dim=1)
            off = drawn.mean(dim=1) - means
            found.append(float(off.square().sum() / (means - means.mean(dim=0)).square().sum()))
        return sum(found) / len(found)

    assert distance(refined[:, :1]) < 0.6 * distance(start[:, :1])
    assert distance(refined[:, :10]) < 0.6 * distance(start[:, :10])
    assert torch.equal(refined[:, 10:], start[:, 10:])


class Eye(torch.nn.Module):
    """A classifier whose features are the pixels."""

    def normalise(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return images_NCHW

    def forward(self, images_NCHW: torch.Tensor) -> tuple[torch.Tensor, None]:
        return images_NCHW.flatten(1), None


def test_mean_squares_keep_the_images_of_a_class_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black and white images are grey in the mean, and so is a set of grey ones."""
    images = np.zeros((40, 8, 8, 1), np.uint8)
    images[::2] = 255
    data = DeviceData(images, np.zeros(40, np.int64), 1, torch.device("cpu"))
    start = 0.05 * torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(0))

    def spread() -> float:
        eye = cast(PoolMember, Eye())
        refinement = make_refinement(start, [], [eye], data, steps=200)
        for index in range(refinement.total):
            refinement.step(index)
        return float(canvas(refinement.result()[0], torch.empty(0)).std(dim=0).mean())

    assert spread() > 0.8
    monkeypatch.setattr("dim.distillation.feature_targets.SQUARES_WEIGHT", 0.0)
    assert spread() < 0.2


def test_trained_extractors_ask_for_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features say nothing here: the logits alone tell two classes apart."""
    monkeypatch.setattr(
        "dim.distillation.refinement.CLASSES_PER_GROUP", 1
    )  # the second class is the first of its group

    class Side(Eye):
        """Calls bright images the second class; its features see nothing."""

        def forward(self, images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            brightness = images_NCHW.mean(dim=(1, 2, 3))
            return 0 * images_NCHW.flatten(1), torch.stack([-brightness, brightness], dim=1)

    images = np.full((8, 8, 8, 1), 128, np.uint8)
    data = DeviceData(images, np.repeat([0, 1], 4), 2, torch.device("cpu"))
    start = torch.zeros(2, 2, 64)
    sides: dict[bool, torch.Tensor] = {}
    for trained in (True, False):
        side = [cast(PoolMember, Side())]
        asked = (side, []) if trained else ([], side)
        refinement = make_refinement(start, *asked, data, steps=20)
        for index in range(refinement.total):
            refinement.step(index)
        sides[trained] = refinement.result()
    assert (sides[True][0] < 0).all() and (sides[True][1] > 0).all()
    assert torch.equal(sides[False], start)


@pytest.mark.parametrize("squares", [False, True])
def test_two_draws_leave_out_what_lies_between_them(monkeypatch: pytest.MonkeyPatch, squares: bool) -> None:
    """A class of one image, shown its own image: augmented at random, it is off its mean by chance alone. Twice the
    image makes a set of two, whose mean squares count as well."""
    monkeypatch.setattr(
        "dim.distillation.feature_targets.SQUARES_WEIGHT", 50.0 if squares else 0.0
    )  # so that they weigh most
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    generator, policy = torch.Generator().manual_seed(1), "crop=0.25"
    eye = cast(PoolMember, Eye())
    seen = measure_moments(augment(image.expand(20_000, 1, 8, 8), policy, generator).flatten(1))
    target = replace(make_target(eye, [seen], 0.0), variance=1.0, square_variance=1.0)
    none = torch.zeros(1, dtype=torch.int64)
    shown = image.expand(1, 2, 1, 8, 8)
    found = {
        draws: torch.stack([target.loss(shown, none, none, policy, draws, generator) for _ in range(2_000)])
        for draws in (1, 2)
    }
    variance = float(seen[2] + (50 * seen[3] if squares else 0)) / 2  # of the mean of two
    assert found[1].mean() == pytest.approx(variance, rel=0.1)  # all of it is the variance
    error = float(found[2].std()) / 2_000**0.5
    assert abs(float(found[2].mean())) < min(4 * error, 0.2 * variance)


def new_learner(number: int) -> PoolMember:
    data = make_images()
    torch.manual_seed(number)
    return PoolMember("convnet3", spec_of(data), 8)


def test_learners_learn_the_set_and_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.distillation.set_learners.LEARNER_RESET_STEPS", 40)
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(30) % 3  # of noise: nothing but these images can teach it
    learners, generator = SetLearners(new_learner, 2), torch.Generator().manual_seed(0)

    def losses(member: PoolMember) -> float:
        return float(torch.nn.functional.cross_entropy(member(member.normalise(images))[1], labels))

    with torch.no_grad():
        before = losses(new_learner(1).eval())
    ages, learned = [], []
    for _ in range(20):
        member = learners.teach(1, lambda: (images, labels), "", generator)
        assert not member.training and not any(p.requires_grad for p in member.parameters())
        ages.append(int(learners.ages[1]))
        learned.append(losses(member))
    assert int(learners.ages[0]) == 0  # the other one was never asked
    assert ages[:4] == [LEARNER_STEPS * n for n in (1, 2, 3, 4)]
    assert min(learned) < 0.7 * before
    assert ages.count(LEARNER_STEPS) >= 2 and max(ages) <= 60 + LEARNER_STEPS
    assert int(learners.made) == 2 + ages[1:].count(LEARNER_STEPS)


def test_a_learner_that_diverges_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_images()
    on_device = DeviceData(data.train_images, data.train_labels, 3, torch.device("cpu"))
    start = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))
    made: dict[float, int] = {}
    for rate in (0.1, float("nan")):
        monkeypatch.setattr("dim.distillation.set_learners.LEARNER_LR", rate)
        monkeypatch.setattr("dim.distillation.refinement.EXTRACTORS_PER_STEP", 9)  # all of them
        refinement = make_refinement(start, [], untrained()[:1], on_device, steps=3, learners=2)
        for index in range(refinement.total):
            refinement.step(index)
        assert refinement.learners is not None
        assert all(bool(tensor.isfinite().all()) for tensor in refinement.learners.state_dict().values())
        assert not torch.equal(refinement.result(), start)
        made[rate] = int(refinement.learners.made)
    assert list(made.values()) == [2, 2 + 2 * 3]  # both are asked in each of the three steps for sets of two


def test_learners_see_sets_of_several_images_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is shown the set of the group's classes, with their labels, and aims at real images of those that move."""
    monkeypatch.setattr("dim.distillation.refinement.CLASSES_PER_GROUP", 2)
    monkeypatch.setattr("dim.distillation.refinement.IMAGES_PER_STEP", 4)  # sets of four are moved one class at a time
    data = make_images()
    on_device = DeviceData(data.train_images, data.train_labels, 3, torch.device("cpu"))
    start = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("dim.distillation.refinement.EXTRACTORS_PER_STEP", 9)  # all of them
    refinement = make_refinement(start, [], untrained()[:1], on_device, steps=1, learners=2)
    teach, shown = SetLearners.teach, list[set[tuple[int, bool]]]()
    sets: list[torch.Tensor] = []

    def noted(learners: SetLearners, number: int, draw: Any, *rest: Any) -> PoolMember:
        seen = set[tuple[int, bool]]()

        def watched() -> tuple[torch.Tensor, torch.Tensor]:
            images, labels = draw()
            for image, label in zip(images, labels.tolist(), strict=True):
                known = [number for number, member in enumerate(sets[label]) if torch.equal(member, image)]
                seen.add((label, bool(known)))
            return images, labels

        member = teach(learners, number, watched, *rest)
        shown.append(seen)
        return member

    monkeypatch.setattr("dim.distillation.set_learners.SetLearners.teach", noted)
    learn, targets = Refinement._learn, list[tuple[FeatureTarget, list[int], int]]()

    def kept(refinement: Refinement, number: int, labels: Any, prefix: int, labels_k: torch.Tensor, *rest: Any) -> Any:
        target = learn(refinement, number, labels, prefix, labels_k, *rest)
        assert refinement.learners is not None
        copied = copy.deepcopy(refinement.learners.members[number])
        targets.append((replace(target, member=copied), labels_k.tolist(), int(refinement.learners.made)))
        return target

    monkeypatch.setattr(Refinement, "_learn", kept)
    per_step = []
    for index in range(refinement.total):
        moved = refinement.result()
        sets = [canvas(moved[label], torch.empty(0)) for label in range(3)]
        before = len(shown)
        assert torch.isfinite(refinement.step(index))
        per_step.append(len(shown) - before)
    # Of two classes the first images, then four each by turns; of the third class its first, then its four.
    assert per_step == [0, 2, 2, 0, 2]
    assert shown == [{(0, True), (1, True)}] * 4 + [{(2, True)}] * 2
    assert (refinement.result() != start).any(dim=2).all()
    assert [labels for _, labels, _ in targets] == [[0], [0], [1], [1], [2], [2]]
    assert [made for _, _, made in targets] == [2, 2, 2, 2, 4, 4]  # another group has other learners
    for target, (label,), _ in targets:
        with torch.no_grad():
            means = [
                target.member(
                    target.member.normalise(to_signed(on_device.draw_class_images(k, 1000, torch.Generator())))
                )[0]
                for k in range(3)
            ]
        off = torch.stack([(target.mean_kD[0] - mean.mean(dim=0)).norm() for mean in means])
        assert off.argmin() == label
        assert target.cross_entropy == 0


def test_presets_refine_natural_images_by_learners_and_others_without() -> None:
    for name in ("small", "best"):
        found = []
        for data, channels in (("cifar10", 3), ("svhn", 3), ("photos", 3), ("fashion-mnist", 1), ("mnist", 1)):
            deployment = preset(name, data=replace(make_images(channels=channels), name=data)).deployment
            found.append((deployment.refine_cross_entropy, deployment.refine_draws, deployment.refine_learners))
            assert deployment.refine_steps == 400
        assert found == [(0.2, 2, 8)] * 4 + [(0.0, 1, 0)]


@pytest.mark.parametrize("group", [100, 2])
def test_the_first_latent_does_not_depend_on_the_later_ones(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.distillation.refinement.CLASSES_PER_GROUP", group)
    start = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(refine(start, steps=5)[0][:, :1], refine(start[:, :1], steps=5)[0])


@pytest.mark.slow
def test_refining_moves_the_latents_of_small_sets_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.distillation.refinement.REFINED_IPCS", (1, 2))
    for name, steps in (("chosen", 0), ("refined", 3)):
        distill(make_images(), quick(**{"deployment.refine_steps": steps}), tmp_path / name)
    chosen, refined = (np.load(tmp_path / name / "latents.npz")["latents"] for name in ("chosen", "refined"))
    assert np.array_equal(chosen[:, 2:], refined[:, 2:])
    assert (chosen[:, :2] != refined[:, :2]).any(axis=2).all()


@pytest.mark.slow
def test_convnets_and_resnets_of_every_age_see_what_is_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    fresh: list[str] = []

    class Noted(Refinement):
        def __init__(
            self,
            network: Any,
            latents: torch.Tensor,
            trained: Sequence[PoolMember],
            untrained: Sequence[PoolMember],
            *rest: Any,
            **how: Any,
        ):
            asked.extend(member.name for member in trained)
            fresh.extend(member.name for member in untrained)
            super().__init__(network, latents, trained, untrained, *rest, **how)

    monkeypatch.setattr("dim.distillation.choices.Refinement", Noted)
    distill(make_images(), quick(**{"pool.architectures": ("convnet3", "resnet10", "mlp")}), tmp_path / "run")
    assert sorted(asked) == ["convnet3"] * 2 + ["resnet10"] * 2
    assert fresh == ["convnet3"] * UNTRAINED_EXTRACTORS


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"pool.architectures": ("mlp",)}, {"pool.architectures": ("mlp",), "deployment.fixed_latents": 1}]
)
def test_refining_needs_no_convnet_in_the_pool(changes: dict[str, object], tmp_path: Path) -> None:
    distill(make_images(), quick(**changes), tmp_path / "run")
    assert np.isfinite(np.load(tmp_path / "run" / "latents.npz")["latents"]).all()


@pytest.mark.slow
def test_a_teacher_in_pieces_chooses_and_refines_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    config = quick(**{"deployment.teacher": "mlp", "deployment.teacher_steps": 3})
    for resume in (False, *(True for _ in range(60))):
        progress = lambda what, done, total, note: seen.append((what, done))  # noqa: E731
        run = distill(make_images(), config, tmp_path / "run", resume=resume, time_limit_s=0.0, progress=progress)
        if run.finished:
            break
    assert run.finished
    for stage, steps in (("herding", 3), ("refining", 2 * 3), ("teacher", 3)):  # sets of one and of three
        # A piece begins by reporting where the last one ended.
        told = [step for step, _ in groupby(step for name, step in seen if name == stage)]
        assert told == list(range(steps + 1))
    assert not list((tmp_path / "run").rglob("*unfinished*"))


@pytest.mark.slow
def test_groups_of_classes_are_refined_in_pieces_as_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.distillation.refinement.CLASSES_PER_GROUP", 2)
    monkeypatch.setattr("dim.distillation.refinement.IMAGES_PER_STEP", 3)  # sets of three are moved one class at a time
    monkeypatch.setattr("dim.distillation.set_learners.LEARNER_RESET_STEPS", 4)
    config = quick(**{"deployment.refine_learners": 2, "deployment.refine_draws": 2})
    renewed: list[int] = []
    teach = SetLearners.teach

    def noted(learners: SetLearners, *arguments: Any) -> PoolMember:
        member = teach(learners, *arguments)
        renewed.append(int(learners.made) - 2)
        return member

    monkeypatch.setattr("dim.distillation.set_learners.SetLearners.teach", noted)
    distill(make_images(), config, tmp_path / "whole")
    whole, renewed[:] = list(renewed), []
    finished = distill(make_images(), config, tmp_path / "run", time_limit_s=0.0).finished
    calls = 1
    while not finished and calls < 60:
        finished = distill(make_images(), config, tmp_path / "run", resume=True, time_limit_s=0.0).finished
        calls += 1
    assert renewed == whole and max(renewed) >= 2
    # A step a call: of two classes together, then by turns, and then of the third class.
    assert calls == 5 + 6 + 5 + 2 + 3 + (3 + 2 * 3) + (3 + 3)
    assert (tmp_path / "run" / "latents.npz").read_bytes() == (tmp_path / "whole" / "latents.npz").read_bytes()


def test_classes_that_take_turns_are_all_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.distillation.refinement.IMAGES_PER_STEP", 10)
    start = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0))
    refined, _ = refine(start, steps=2)
    assert (refined != start).any(dim=2).all()


def test_latents_that_are_not_finite_are_refused() -> None:
    start = torch.full((3, 2, 64), float("nan"))
    with pytest.raises(DivergedError, match="Refining the latents of small fixed sets diverged"):
        refine(start, steps=1)


@pytest.mark.slow
def test_a_class_of_one_image_has_a_mean(tmp_path: Path) -> None:
    data = make_images()
    keep = [i for i, label in enumerate(data.train_labels) if label != 2 or i == len(data.train_labels) - 1]
    data = replace(data, train_images=data.train_images[keep], train_labels=data.train_labels[keep])
    config = preset("tiny", data=data, overrides={**QUICK, "pool.augment": "", "deployment.latent_stds": ()})
    distill(data, config, tmp_path / "run")
    assert np.isfinite(np.load(tmp_path / "run" / "latents.npz")["latents"]).all()


@pytest.mark.slow
def test_the_choices_are_optional_and_need_the_kept_pool(tmp_path: Path) -> None:
    nothing = {"deployment.latent_stds": (), "deployment.fixed_latents": 0}
    distill(make_images(), quick(**nothing), tmp_path / "run")
    assert not (tmp_path / "run" / "deployment.json").exists()
    assert not (tmp_path / "run" / "latents.npz").exists()
    with pytest.raises(BadValueError, match="need the kept pool"):
        preset("tiny", data=make_images(), overrides={"pool.kind": "fresh"})
    with pytest.raises(BadValueError, match="must be numbers between 0.1 and 10"):
        DeploymentConfig(latent_stds=(0.0,))
    with pytest.raises(BadValueError, match="fixed_latents is 9; it must be between 0 and 6"):
        DeploymentConfig(fixed_latents=9, candidates=6)
    with pytest.raises(BadValueError, match="refine_steps is -1"):
        DeploymentConfig(refine_steps=-1)
    with pytest.raises(BadValueError, match="refine_draws is 3; it must be between 1 and 2"):
        DeploymentConfig(refine_draws=3)
    with pytest.raises(BadValueError, match="refine_learners is -1"):
        DeploymentConfig(refine_learners=-1)
