"""The last choices of a distillation, against slow definitions of what they minimise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import make_images
from test_dim_distill import quick

from dim.config import DeploymentConfig
from dim.deployment import Judge, class_weights, herd
from dim.distill import distill
from dim.presets import preset
from dim.runtime.errors import BadValueError
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
