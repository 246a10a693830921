"""lab/distill_speed.py: both sides have equal networks, the rival does what was published, and the figures add up."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dim.execution.device_data import DeviceData
from dim.presets import PRESETS

BENCH = Path(__file__).parents[2] / "lab"
SHAPE = {"num_classes": 10, "image_px": 8, "channels": 1}


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("lab.distill_speed")


@pytest.fixture(scope="module")
def sides(bench: ModuleType) -> ModuleType:
    return importlib.import_module("lab.distill_sides")


def make_sides(bench: ModuleType, sides: ModuleType, folder: Path, preset: str = "tiny") -> tuple[Any, Any]:
    config, _ = bench.configure(preset, SHAPE, 4, ["mlp", "convnet3"])
    labels = np.repeat(np.arange(10), 3)
    pixels = np.broadcast_to(labels[:, None, None, None] * 20, (30, 8, 8, 1)).astype(np.uint8)
    data = DeviceData(pixels, labels, 10, torch.device("cpu"))
    return sides.Ours(config, SHAPE, data, folder), sides.Theirs(config, SHAPE, data, "fp32")


@pytest.mark.slow
def test_a_run_reports_both_sides_at_every_length(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report.json"
    tiny = ["--preset", "tiny", "--image-px", "8", "--batch", "4", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    code = bench.main([*tiny, "--architectures", "mlp", "convnet3", "--out", str(out), "--check"])
    report = json.loads(out.read_text())
    assert code == int(any(not claim["holds"] for claim in report["claims"]))
    assert {(r["side"], r["precision"]) for r in report["rows"]} == {
        (side, precision) for side in ("ours", "recipe", "recipe, tuned") for precision in ("fp32", "bf16")
    }
    assert report["stage2_images"] == {"stage 2 of tiny": 300 * 64, "stage 2 as long as published": 78_000 * 64}
    assert report["pool_sgd_steps"] == 2 * 200
    assert {(c["what"], c["ours"], c["rival"], c["least"]) for c in report["claims"]} == {
        (what, precision, rival, least)
        for what in report["stage2_images"]
        for rival in ("recipe", "recipe, tuned")
        for precision, least in (("fp32", 4.0), ("bf16", 6.0))
    }
    assert all(0 < row["cpu_least"] <= row["cpu"] <= row["cpu_most"] for row in report["ratios"])
    printed = capsys.readouterr().out
    assert "the kept pool takes 400 SGD steps (mlp, convnet3), spread over 19,200 images or 4,992,000" in printed


@pytest.mark.parametrize("tuned", [False, True])
def test_the_tuned_recipe_lies_as_ours_does(bench: ModuleType, sides: ModuleType, tmp_path: Path, tuned: bool) -> None:
    config, _ = bench.configure("tiny", SHAPE, 4, ["convnet3"])
    data = DeviceData(np.zeros((30, 8, 8, 1), np.uint8), np.repeat(np.arange(10), 3), 10, torch.device("cpu"))
    recipe = sides.Theirs(config, SHAPE, data, "fp32", tuned).recipe
    networks = (recipe.generator, recipe.critic)
    kernels = [p for network in networks for p in network.parameters() if p.dim() == 4 and min(p.shape) > 1]
    assert kernels and all(kernel.is_contiguous() == (not tuned) for kernel in kernels)
    optimisers = (recipe.generator_optimiser, recipe.critic_optimiser, *recipe.classifier_optimisers)
    assert [optimiser.defaults["fused"] for optimiser in optimisers] == [tuned or None] * 3


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_can_be_timed(bench: ModuleType, preset: str, channels: int) -> None:
    config, stages = bench.configure(preset, SHAPE | {"image_px": 32, "channels": channels}, 16, None)
    assert config.pool.kind == "kept" and config.stage1.batch_size == config.pool.batch_size == 16
    assert list(stages)[-1] == "stage 2 as long as published"


def test_the_pool_is_spread_over_the_images_of_the_stage(bench: ModuleType, sides: ModuleType) -> None:
    ours = [sides.Turn(stage1_step=(1.0, 2.0), stage2_step=(2.0, 4.0), pool=(100.0, 300.0))]
    theirs = [sides.Turn(stage1_step=(3.0, 8.0), stage2_step=(40.0, 60.0))]
    turns = {("ours", "fp32"): ours, ("recipe", "fp32"): theirs}
    report = bench.summarise(turns, batch=8, stages={"short": 400, "long": 8000})
    assert [(r["what"], r["cpu"], r["wall"]) for r in report["ratios"]] == [
        ("stage 1", 3.0, 4.0),
        ("short", 40 / (2 + 100 * 8 / 400), 60 / (4 + 300 * 8 / 400)),
        ("long", pytest.approx(40 / 2.1), pytest.approx(60 / 4.3)),
    ]
    speeds = {(r["what"], r["side"]): r["images_per_s_cpu"] for r in report["rows"]}
    assert speeds["short", "ours"] == 2.0 and speeds["short", "recipe"] == speeds["long", "recipe"] == 0.2
    assert [(c["what"], c["least"], c["holds"]) for c in bench.judge(report["ratios"], "cpu")] == [
        ("short", 4.0, True),
        ("long", 4.0, True),
    ]


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_both_sides_have_networks_of_one_size(
    bench: ModuleType, sides: ModuleType, tmp_path: Path, preset: str
) -> None:
    ours, theirs = make_sides(bench, sides, tmp_path, preset)
    gan, recipe = ours.session.gan, theirs.recipe

    def widths(network: torch.nn.Module) -> list[int]:
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        return [layer.weight.shape[0] for layer in layers]

    assert [p.shape for p in gan.generator.parameters()] == [p.shape for p in recipe.generator.parameters()]
    ours_widths, theirs_widths = widths(gan.discriminator), widths(recipe.critic)
    assert theirs_widths == ours_widths + ([10] if preset == "tiny" else [])  # the class head
    members = sides.prepare_pool(ours.session).members
    assert [widths(member) for member in members] == [widths(classifier) for classifier in recipe.classifiers]


def test_the_recipe_trains_one_classifier_for_sixteen_steps_and_moves_every_network(
    bench: ModuleType, sides: ModuleType, tmp_path: Path
) -> None:
    recipe = make_sides(bench, sides, tmp_path)[1].recipe
    networks = {"generator": recipe.generator, "critic": recipe.critic}
    networks |= {f"classifier {n}": c for n, c in enumerate(recipe.classifiers)}

    def moved(step: Any) -> set[str]:
        before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
        step()
        return {
            name
            for name, network in networks.items()
            if any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
        }

    calls = []
    handle = recipe.classifier_optimisers[1].register_step_post_hook(lambda *args: calls.append(1))
    assert moved(recipe.stage1_step) == {"generator", "critic"}
    assert moved(lambda: recipe.stage2_step(1)) == {"generator", "critic", "classifier 1"}
    handle.remove()
    assert len(calls) == 16
    assert all(p.requires_grad for p in recipe.critic.parameters())


def test_matched_pairs_share_their_label(bench: ModuleType, sides: ModuleType, tmp_path: Path) -> None:
    recipe = make_sides(bench, sides, tmp_path)[1].recipe
    labels = torch.tensor([3, 0, 9, 9])
    expected = (labels * 20).view(-1, 1, 1, 1).expand(4, 1, 8, 8) / 127.5 - 1
    torch.testing.assert_close(recipe._real_images(labels), expected)
