"""Compiled networks train the same GAN, and whoever cannot compile is told so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from parallel_runs import metrics
from quick_runs import quick, weights
from small_images import make_images
from torch import nn

from dim.config import DistillConfig
from dim.distillation.adversarial import AdversarialTraining
from dim.distillation.distill import distill
from dim.execution import compiled
from dim.execution.compiled import MIN_STEPS_TO_COMPILE, choose_compiler
from dim.execution.distributed import World
from dim.runtime.errors import BadValueError, DeviceError

# Torch's compiler meets warnings of its own, and hides one in a way that does not work where warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]
CPU = torch.device("cpu")
SHORT = {
    "autocast": "off",
    "stage1.steps": 3,
    "stage1.adversarial.r1_every": 2,
    "stage2.steps": 2,
    "stage2.adversarial.r1_every": 2,
    "pool.architectures": ("mlp",),
    "log_steps": 1,
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
}


@pytest.fixture(autouse=True)
def graphs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and differentiate as the real compiler does, and run the graphs without making code of them."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    torch.compiler.reset()


def longest() -> DistillConfig:
    config = quick()
    return replace(config, graphs="off", stage1=replace(config.stage1, steps=MIN_STEPS_TO_COMPILE))


@pytest.mark.slow
def test_a_compiled_game_gives_what_a_plain_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        AdversarialTraining,
        "copy_ema_generator",
        partialmethod(AdversarialTraining.copy_ema_generator, batches=1, batch_size=8),
    )
    for how in ("off", "on"):
        distill(make_images(), quick(**SHORT, compile=how), tmp_path / how, device="cpu")
    for plain, fast in zip(metrics(tmp_path / "off"), metrics(tmp_path / "on"), strict=True):
        assert plain.keys() == fast.keys()
        assert ("r1" in plain) == (plain["step"] % 2 == 1)
        assert plain.pop("stage") == fast.pop("stage")
        assert plain == pytest.approx(fast, rel=1e-4, abs=1e-5)
    one, other = weights(tmp_path / "off"), weights(tmp_path / "on")
    assert one.keys() == other.keys()  # the names of the weights are those of the plain networks


def test_only_long_runs_of_one_process_on_a_gpu_without_graphs_are_compiled_unasked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: lambda *inputs: "compiled")
    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: None)
    network, gpu = nn.Linear(1, 1), torch.device("cuda")

    def is_compiled(config: DistillConfig, device: torch.device, processes: int = 1) -> bool:
        return choose_compiler(config, device, World(size=processes))(network) is not network

    assert quick().compile == "auto"
    assert is_compiled(longest(), gpu)
    assert not is_compiled(longest(), CPU)
    assert not is_compiled(longest(), gpu, processes=2)
    assert not is_compiled(replace(longest(), graphs="auto"), gpu)
    assert not is_compiled(replace(quick(), graphs="off"), gpu)
    assert not is_compiled(replace(longest(), compile="off"), gpu)
    assert is_compiled(replace(quick(), compile="on"), CPU)


def test_a_machine_that_cannot_compile_says_so_or_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/such/compiler",))
    message = (
        r"^torch.compile does not work here \(.*\): it needs a C\+\+ compiler such as g\+\+; install that, or set "
    )
    with pytest.raises(DeviceError, match=message + "compile to 'off'.$"):
        distill(make_images(), quick(compile="on"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(compiled, "MIN_STEPS_TO_COMPILE", 0)
    monkeypatch.setattr(torch, "ones", lambda count, device: torch.zeros(count))
    network = nn.Linear(1, 1)
    assert choose_compiler(longest(), torch.device("cuda"), World())(network) is network


def test_a_network_that_cannot_be_compiled_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise ValueError("out of luck")

    monkeypatch.setattr(compiled, "_probe", lambda values: values)  # nothing to compile
    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(DeviceError, match=r"^torch.compile does not work here \(.*out of luck.*\): it needs"):
        distill(make_images(), quick(**SHORT, compile="on"), tmp_path / "run", device="cpu")
    assert (tmp_path / "run").exists()  # the probe had nothing to say


def test_several_processes_are_not_compiled() -> None:
    with pytest.raises(BadValueError, match="^compile is 'on' with 2 processes; batch statistics that span processes"):
        choose_compiler(quick(compile="on"), CPU, World(size=2))
    with pytest.raises(BadValueError, match="compile is 'fast'; it must be one of auto, on, off"):
        quick(compile="fast")
