"""The last choices of a distillation, against slow definitions of what they minimise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from small_images import make_images
from test_dim_distill import QUICK, quick

from dim.classifiers import build_classifier
from dim.config import DeploymentConfig
from dim.deployment import Judge, class_weights, herd
from dim.device_data import DeviceData, to_signed
from dim.distill import distill
from dim.pool import PoolMember
from dim.presets import preset
from dim.refinement import UNTRAINED, Refinement
from dim.runtime.errors import BadValueError, DivergedError
from dim.session import Session


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
        ([50, 1, 0], [1.0, 0.0, 0.0]),  # one image has no spread, so its class would decide alone
        ([31, 11], [0.75, 0.25]),
        ([1, 0, 1], [0.5, 0.0, 0.5]),
        ([5000, 1000], [0.5, 0.5]),  # as many are looked at
    ],
)
def test_classes_judge_the_spread_by_what_was_held_out(counts: list[int], weights: list[float]) -> None:
    assert class_weights(torch.tensor(counts)).tolist() == pytest.approx(weights)


def test_a_run_chooses_its_spread_and_its_fixed_latents(tmp_path: Path) -> None:
    distill(quick(), make_images(), tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "deployment.json").read_text())
    assert set(chosen["energy_distances"]) == {"1", "1.2"}
    best = min(chosen["energy_distances"], key=lambda k: chosen["energy_distances"][k])
    assert chosen["latent_std"] == float(best)
    with np.load(tmp_path / "run" / "latents.npz") as archive:
        assert archive["latents"].shape == (3, 3, 8) and archive["latents"].dtype == np.float32


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [(("mlp", "convnet3"), ["convnet3", "convnet3"]), (("mlp", "resnet10"), ["mlp", "resnet10"])],
)
def test_the_convnets_of_every_age_judge_the_latents_where_there_are_some(
    architectures: tuple[str, ...], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def herd_nothing(
        session: Session, network: torch.nn.Module, judges: list[Judge], latent_std: float
    ) -> torch.Tensor:
        judged.extend(judge.member.name for judge in judges)
        return torch.zeros(3, 3, 8)

    monkeypatch.setattr("dim.deployment.herd_latents", herd_nothing)
    distill(quick(**{"pool.architectures": architectures}), make_images(), tmp_path / "run")
    assert judged == expected


def canvas(latents_NZ: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """A generator that can draw anything: the latents are the pixels."""
    return torch.tanh(latents_NZ).reshape(-1, 1, 8, 8)


def judges() -> list[PoolMember]:
    """Four ConvNets that were never trained."""
    data, members = make_images(), []
    shape = {"num_classes": 3, "channels": 1, "image_px": 8, "width": 16, "mean": data.mean, "std": data.std}
    for seed in range(4):
        torch.manual_seed(seed)
        members.append(PoolMember("convnet3", shape).eval().requires_grad_(False))
    return members


def refine(latents_KMZ: torch.Tensor, steps: int = 150) -> tuple[torch.Tensor, DeviceData]:
    """Latents of the canvas for the test data's classes, moved to where `judges` see them."""
    data = make_images()
    on_device = DeviceData(data.train_images, data.train_labels, 3, torch.device("cpu"))
    refinement = Refinement(
        canvas, latents_KMZ, [], judges(), on_device, steps=steps, policy="", seed=0, cross_entropy=0.2
    )
    for index in range(refinement.total):
        refinement.step(index)
    return refinement.result(), on_device


def judged(images_NCHW: torch.Tensor) -> list[torch.Tensor]:
    """Features as ConvNets of other weights see them, `[3, N / 3, D]` each."""
    features = []
    for seed in range(5):
        torch.manual_seed(1000 + seed)
        with torch.no_grad():
            judge = build_classifier("convnet3", 3, 1, 8, 16).eval()
            features.append(judge.features(images_NCHW).unflatten(0, (3, -1)))
    return features


def test_sets_of_one_and_ten_come_nearer_to_the_means_of_their_classes() -> None:
    start = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0))
    refined, data = refine(start)
    reals = judged(to_signed(data.images_NCHW))

    def distance(latents_KmZ: torch.Tensor) -> float:
        """Of the means, in parts of what lies between the classes."""
        found = []
        for real, drawn in zip(reals, judged(canvas(latents_KmZ.flatten(0, 1), torch.empty(0))), strict=True):
            means = real.mean(dim=1)
            off = drawn.mean(dim=1) - means
            found.append(float(off.square().sum() / (means - means.mean(dim=0)).square().sum()))
        return sum(found) / len(found)

    assert distance(refined[:, :1]) < 0.6 * distance(start[:, :1])
    assert distance(refined[:, :10]) < 0.6 * distance(start[:, :10])
    assert torch.equal(refined[:, 10:], start[:, 10:])


class Eye(torch.nn.Module):
    """A judge whose features are the pixels."""

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
        judge = cast(PoolMember, Eye())
        refinement = Refinement(canvas, start, [], [judge], data, steps=200, policy="", seed=0, cross_entropy=0.2)
        for index in range(refinement.total):
            refinement.step(index)
        return float(canvas(refinement.result()[0], torch.empty(0)).std(dim=0).mean())

    assert spread() > 0.8
    monkeypatch.setattr("dim.refinement.SQUARES", 0.0)
    assert spread() < 0.2


def test_trained_judges_ask_for_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features say nothing here: the logits alone tell two classes apart."""
    monkeypatch.setattr("dim.refinement.GROUP", 1)  # the second class is the first of its group

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
        refinement = Refinement(canvas, start, *asked, data, steps=20, policy="", seed=0, cross_entropy=0.2)
        for index in range(refinement.total):
            refinement.step(index)
        sides[trained] = refinement.result()
    assert (sides[True][0] < 0).all() and (sides[True][1] > 0).all()
    assert torch.equal(sides[False], start)


@pytest.mark.parametrize("group", [100, 2])
def test_the_first_latent_does_not_depend_on_the_later_ones(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.refinement.GROUP", group)
    start = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(refine(start, steps=5)[0][:, :1], refine(start[:, :1], steps=5)[0])


def test_refining_moves_the_latents_of_small_sets_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.refinement.PREFIXES", (1, 2))
    for name, steps in (("chosen", 0), ("refined", 3)):
        distill(quick(**{"deployment.refine_steps": steps}), make_images(), tmp_path / name)
    chosen, refined = (np.load(tmp_path / name / "latents.npz")["latents"] for name in ("chosen", "refined"))
    assert np.array_equal(chosen[:, 2:], refined[:, 2:])
    assert (chosen[:, :2] != refined[:, :2]).any(axis=2).all()


def test_convnets_and_resnets_of_every_age_judge_what_is_refined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            asked.extend(judge.name for judge in trained)
            fresh.extend(judge.name for judge in untrained)
            super().__init__(network, latents, trained, untrained, *rest, **how)

    monkeypatch.setattr("dim.deployment.Refinement", Noted)
    distill(quick(**{"pool.architectures": ("convnet3", "resnet10", "mlp")}), make_images(), tmp_path / "run")
    assert sorted(asked) == ["convnet3"] * 2 + ["resnet10"] * 2
    assert fresh == ["convnet3"] * UNTRAINED


@pytest.mark.parametrize(
    "changes", [{"pool.architectures": ("mlp",)}, {"pool.architectures": ("mlp",), "deployment.fixed_latents": 1}]
)
def test_refining_needs_no_convnet_in_the_pool(changes: dict[str, object], tmp_path: Path) -> None:
    distill(quick(**changes), make_images(), tmp_path / "run")
    assert np.isfinite(np.load(tmp_path / "run" / "latents.npz")["latents"]).all()


def test_a_teacher_in_pieces_chooses_and_refines_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    config = quick(**{"deployment.teacher": "mlp", "deployment.teacher_steps": 3})
    for resume in (False, *(True for _ in range(60))):
        progress = lambda report: seen.append((report.stage, report.step))  # noqa: E731
        run = distill(config, make_images(), tmp_path / "run", resume=resume, time_limit_s=0.0, progress=progress)
        if run.finished:
            break
    assert run.finished
    for stage, steps in (("herding", 3), ("refining", 2 * 3), ("teacher", 3)):  # sets of one and of three
        assert [step for name, step in seen if name == stage] == list(range(1, steps + 1))
    assert not list((tmp_path / "run").rglob("*unfinished*"))


def test_groups_of_classes_are_refined_in_pieces_as_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.refinement.GROUP", 2)
    monkeypatch.setattr("dim.refinement.IMAGES_PER_STEP", 3)  # sets of three are moved one class at a time
    distill(quick(), make_images(), tmp_path / "whole")
    finished = distill(quick(), make_images(), tmp_path / "run", time_limit_s=0.0).finished
    calls = 1
    while not finished and calls < 60:
        finished = distill(quick(), make_images(), tmp_path / "run", resume=True, time_limit_s=0.0).finished
        calls += 1
    # A step a call: of two classes together, then by turns, and then of the third class.
    assert calls == 5 + 6 + 5 + 2 + 3 + (3 + 2 * 3) + (3 + 3)
    assert (tmp_path / "run" / "latents.npz").read_bytes() == (tmp_path / "whole" / "latents.npz").read_bytes()


def test_classes_that_take_turns_are_all_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.refinement.IMAGES_PER_STEP", 10)
    start = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0))
    refined, _ = refine(start, steps=2)
    assert (refined != start).any(dim=2).all()


def test_latents_that_are_not_finite_are_refused() -> None:
    start = torch.full((3, 2, 64), float("nan"))
    with pytest.raises(DivergedError, match="Refining the latents of small fixed sets diverged"):
        refine(start, steps=1)


def test_a_class_of_one_image_has_a_mean(tmp_path: Path) -> None:
    data = make_images()
    keep = [i for i, label in enumerate(data.train_labels) if label != 2 or i == len(data.train_labels) - 1]
    data = replace(data, train_images=data.train_images[keep], train_labels=data.train_labels[keep])
    config = preset("tiny", data=data, overrides={**QUICK, "pool.augment": "", "deployment.latent_stds": ()})
    distill(config, data, tmp_path / "run")
    assert np.isfinite(np.load(tmp_path / "run" / "latents.npz")["latents"]).all()


def test_the_choices_are_optional_and_need_the_kept_pool(tmp_path: Path) -> None:
    nothing = {"deployment.latent_stds": (), "deployment.fixed_latents": 0}
    distill(quick(**nothing), make_images(), tmp_path / "run")
    assert not (tmp_path / "run" / "deployment.json").exists()
    assert not (tmp_path / "run" / "latents.npz").exists()
    with pytest.raises(BadValueError, match="needs the kept pool"):
        preset("tiny", data=make_images(), overrides={"pool.kind": "fresh"})
    with pytest.raises(BadValueError, match="must lie between 0.1 and 10"):
        DeploymentConfig(latent_stds=(0.0,))
    with pytest.raises(BadValueError, match="fixed_latents is 9; it must lie between 0 and 6"):
        DeploymentConfig(fixed_latents=9, candidates=6)
    with pytest.raises(BadValueError, match="refine_steps is -1"):
        DeploymentConfig(refine_steps=-1)
