"""Data-parallel distillation on the CPU: two processes do what one does, within rounding."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from cli_tools import dim
from parallel_runs import (
    CASES,
    MOST_PIECES,
    TINY,
    assert_same_run,
    free_ports,
    many_groups,
    norm_case,
    one_of_two,
    run_case,
)
from quick_runs import quick
from small_images import make_images
from torch import nn

from dim.distillation.check_config import check_config
from dim.distillation.distill import describe_run
from dim.distillation.stage2 import matching_group_size
from dim.execution.distributed import World, join_process_group
from dim.networks.batch_norm import BatchNorm, ClassBatchNorm, refresh_statistics, span_processes
from dim.networks.classifiers import build_classifier
from dim.presets import preset
from dim.runtime.errors import BadValueError


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave, all cases one after the other: starting processes takes most of the time."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(one_of_two, args=(str(folder), free_ports(1 + len(CASES) + MOST_PIECES)), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name: str, two: Path, tmp_path: Path) -> None:
    assert_same_run(run_case(name, tmp_path), two / name)


@pytest.mark.slow
def test_two_processes_that_a_time_limit_stops_give_what_one_gives_undisturbed(two: Path, tmp_path: Path) -> None:
    assert_same_run(run_case("norm", tmp_path), two / "pieces" / "norm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:.torch.jit:DeprecationWarning")
def test_two_processes_with_compiled_code_give_what_one_gives(tmp_path: Path) -> None:
    ports = free_ports(2 + MOST_PIECES)
    mp.spawn(one_of_two, args=(str(tmp_path), ports, ("compiled",)), nprocs=2)
    alone = run_case("compiled", tmp_path / "alone")
    assert json.loads((alone / "config.json").read_text())["compile"] == "on"
    assert_same_run(alone, tmp_path / "compiled")
    assert_same_run(alone, tmp_path / "pieces" / "compiled")


@pytest.mark.slow
def test_processes_that_leave_their_group_at_once_do_not_wait_for_themselves() -> None:
    """Without a last hold on the group, a process hangs within a few dozen times."""
    processes = mp.spawn(many_groups, args=(free_ports(60),), nprocs=2, join=False)
    end = time.monotonic() + 240
    try:
        while not processes.join(timeout=5):
            assert time.monotonic() < end, "a process hangs"
    finally:
        for process in processes.processes:
            process.kill()


@pytest.mark.parametrize("changes", [{"stage2.batch_size": 16}, {"stage2.adversarial.generator_lr": 2.01e-4}])
def test_the_comparison_tells_runs_apart_that_differ(changes: dict[str, object], two: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert_same_run(run_case("norm", tmp_path, **changes), two / "norm")


@pytest.mark.slow
def test_the_documented_command_gives_what_one_process_gives(tmp_path: Path) -> None:
    data = make_images()
    np.savez(tmp_path / "bars.npz", images=data.train_images, labels=data.train_labels)
    arguments = ["distill", "--data", str(tmp_path / "bars.npz"), "--preset", "tiny"]
    arguments += ["--device", "cpu", "--threads", "1"]
    for field, value in TINY.items():
        arguments += ["--set", f"{field}={json.dumps(value)}"]
    ran = dim(*arguments, "--out", tmp_path / "one")
    assert ran.code == 0, ran.err
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dim.cli.main"]
    result = subprocess.run(
        [sys.executable, *launcher, *arguments, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Distilled after") == 1  # one process speaks
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_groups_are_chosen_by_the_batch_of_all_processes(tmp_path: Path) -> None:
    config = quick(**{"stage1.batch_size": 64, "stage2.batch_size": 64})
    images = describe_run(config, make_images()).data.images
    assert matching_group_size(config) == 16
    check_config(config, images, World(size=4))
    message = (
        r"stage2.batch_size is 64; it must be a multiple of 128 \(8 processes, matched in groups of 16\): change it, "
        "or set matching.classes_per_step, the least number of groups, to 8 or a multiple of it."
    )
    with pytest.raises(BadValueError, match=f"^{message}$"):
        check_config(config, images, World(size=8))
    check_config(replace(config, matching=replace(config.matching, classes_per_step=8)), images, World(size=8))


@pytest.mark.parametrize(("name", "size"), [("tiny", 16), ("small", 32), ("best", 16), ("paper", 1)])
def test_groups_of_the_presets_stay_as_they_were(name: str, size: int) -> None:
    assert matching_group_size(preset(name, data=make_images())) == size


def test_batch_statistics_and_their_gradients_span_all_processes(two: Path) -> None:
    norm, inputs, weights = norm_case()
    inputs.requires_grad_(True)
    output = norm(inputs)
    (output * weights).sum().backward()
    shares = [torch.load(two / f"norm-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert inputs.grad is not None
    assert torch.allclose(torch.cat([s["output"] for s in shares]), output.detach(), atol=1e-5)
    assert torch.allclose(torch.cat([s["gradient"] for s in shares]), inputs.grad, atol=1e-5)
    for share in shares:
        assert torch.allclose(share["mean"], norm.running_mean, atol=1e-6)
        assert torch.allclose(share["var"], norm.running_var, atol=1e-6)


def test_norms_that_span_processes_keep_weights_names_and_results() -> None:
    torch.manual_seed(0)
    plain = build_classifier("resnet10", 3, 1, 8, width=4)
    spanning = copy.deepcopy(plain)
    assert len(span_processes(spanning)) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) > 0
    assert not any(type(m) is nn.BatchNorm2d for m in spanning.modules())
    images = torch.randn(6, 1, 8, 8)
    assert torch.equal(plain(images), spanning(images))
    for (name, value), (other, same) in zip(plain.state_dict().items(), spanning.state_dict().items(), strict=True):
        assert name == other and torch.equal(value, same), name


def test_refreshed_statistics_are_those_of_the_batches() -> None:
    norm = BatchNorm(2)
    norm(torch.randn(4, 2, 3, 3) + 50)
    batches = [torch.randn(16, 2, 3, 3) * 3 + 1 for _ in range(4)]
    refresh_statistics(norm, [(b,) for b in batches])
    assert not norm.training and norm.momentum == 0.1
    expected = torch.stack([b.mean(dim=(0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_mean, expected, atol=1e-6)


def test_class_batch_norm_uses_each_images_class() -> None:
    norm = ClassBatchNorm(2, 3).eval()
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
        norm.bias.weight[2] = 5.0
        output = norm(torch.ones(3, 2, 1, 1), torch.tensor([0, 1, 2]))
    scale = 1 / (1 + norm.norm.eps) ** 0.5
    assert torch.allclose(output[:, 0, 0, 0], torch.tensor([scale, 2 * scale, 3 * scale + 5]))


def test_one_process_is_the_whole_world() -> None:
    with join_process_group("cpu") as world:
        values = torch.arange(6)
        assert world == World() and world.is_main and torch.equal(world.slice(values), values)
        assert world.any_true(True, values.device) and not world.any_true(False, values.device)
        assert torch.equal(world.mean(values), values)
        world.barrier()
