"""Steps as CUDA graphs: what is recorded and when, on the CPU by a stand-in for the graph; the rest needs a GPU."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from quick_runs import quick, weights
from small_images import make_images
from torch import Tensor

import dim.execution.cuda_graphs
from dim.augment import augment
from dim.distillation.distill import distill
from dim.execution.cuda_graphs import (
    MIN_REPLAYS,
    WARMUP_STEPS,
    GraphedSteps,
    Step,
    capturable_lr,
    set_lr,
    use_own_stream,
)
from dim.execution.device_data import seed_of
from dim.runtime.errors import DeviceError

CPU = torch.device("cpu")
MANY = 1e6


class Replayed:
    """Like a graph: it keeps the tensors that it was recorded with, and computes from what is copied into them."""

    made: list["Replayed"]

    def __init__(self, step: Step, generator: torch.Generator, inputs: tuple[Tensor, ...], memory: object) -> None:
        self.step, self.generator = step, generator
        self.inputs = [tensor.clone() for tensor in inputs]
        self.replays = 0
        self.made.append(self)

    def replay(self, inputs: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        self.replays += 1
        for ours, theirs in zip(self.inputs, inputs, strict=True):
            ours.copy_(theirs)
        return self.step(self.generator, *self.inputs)


class Refused(Replayed):
    """A step that cannot be recorded, as PyTorch tells it: the reason first, the end of the recording after it."""

    def __init__(self, step: Step, generator: torch.Generator, inputs: tuple[Tensor, ...], memory: object) -> None:
        try:
            raise RuntimeError("operation not permitted when stream is capturing.\nmore lines")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """Have every step recorded by the stand-in; returns what is recorded."""
    monkeypatch.setattr(Replayed, "made", [], raising=False)
    monkeypatch.setattr(dim.execution.cuda_graphs, "Graph", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    return Replayed.made


def recording_steps() -> GraphedSteps:
    steps = GraphedSteps(CPU)
    steps.recording = True
    return steps


def draw(generator: torch.Generator, *inputs: Tensor) -> dict[str, Tensor]:
    return {"value": torch.rand((), generator=generator) + sum(tensor.sum() for tensor in inputs)}


def test_a_step_is_recorded_when_it_has_run_often_enough(recorded: list[Replayed]) -> None:
    steps, plain = recording_steps(), GraphedSteps(CPU)
    for number in range(WARMUP_STEPS + 3):
        for kind in ("a", "b"):
            images = torch.full((2,), float(number))
            found = steps.take(kind, draw, images, left=MANY, seed=seed_of(kind, number))
            assert found == plain.take(kind, draw, images, left=MANY, seed=seed_of(kind, number))
        assert len(recorded) == (2 if number >= WARMUP_STEPS else 0)
    assert [graph.replays for graph in recorded] == [3, 3]
    steps.forget()
    steps.take("a", draw, left=MANY, seed=1)
    assert [graph.replays for graph in recorded] == [3, 3]


def test_a_step_that_does_not_come_often_is_not_recorded(recorded: list[Replayed]) -> None:
    steps = recording_steps()
    for left in (MIN_REPLAYS + 2, MIN_REPLAYS + 1, MIN_REPLAYS - 0.5, 3):
        steps.take("rare", draw, left=left)
    assert recorded == []
    for left in (MIN_REPLAYS + 2, MIN_REPLAYS + 1, MIN_REPLAYS, 3):
        steps.take("frequent", draw, left=left)
    assert [graph.replays for graph in recorded] == [2]


def test_without_a_seed_the_generator_goes_on(recorded: list[Replayed]) -> None:
    found = []
    for steps in (recording_steps(), GraphedSteps(CPU)):
        steps.generator.manual_seed(3)
        found.append([float(steps.take("a", draw, left=MANY)["value"]) for _ in range(WARMUP_STEPS + 3)])
    assert found[0] == found[1] and len(set(found[0])) == WARMUP_STEPS + 3
    assert len(recorded) == 1


def test_a_step_that_cannot_be_recorded_is_an_error_that_says_why(
    recorded: list[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dim.execution.cuda_graphs, "Graph", Refused)
    steps = recording_steps()
    for _ in range(WARMUP_STEPS):
        steps.take("a", draw, left=MANY)
    message = (
        r"^A training step cannot be recorded as a CUDA graph here "
        r"\(operation not permitted when stream is capturing\): add --set graphs=off, which takes longer.$"
    )
    with pytest.raises(DeviceError, match=message):
        steps.take("a", draw, left=MANY)


def test_nothing_is_recorded_on_a_cpu_or_where_it_is_not_wanted(recorded: list[Replayed]) -> None:
    assert not GraphedSteps(CPU).recording
    assert not GraphedSteps(torch.device("cpu"), wanted=False).recording
    with use_own_stream(CPU):
        for _ in range(WARMUP_STEPS + 1):
            value = GraphedSteps(CPU).take("a", draw, left=MANY, seed=1)
    assert value == draw(torch.Generator().manual_seed(1)) and recorded == []


def test_a_warning_is_shown_once_on_a_cpu() -> None:
    def warn(generator: torch.Generator) -> dict[str, Tensor]:
        warnings.warn("as before", stacklevel=1)
        return {}

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        steps = GraphedSteps(CPU)
        for _ in range(3):
            steps.take("a", warn, left=MANY)
    assert len(shown) == 1


def test_a_rate_changes_in_place_where_it_is_a_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    rate, tensor = capturable_lr(0.5, GraphedSteps(CPU)), capturable_lr(0.5, recording_steps())
    assert rate == 0.5 and not isinstance(rate, Tensor)
    assert isinstance(tensor, Tensor)
    for lr in (rate, tensor):
        optimiser = torch.optim.SGD([weight], lr=lr)
        held = optimiser.param_groups[0]["lr"]
        set_lr(optimiser, 0.25)
        assert float(optimiser.param_groups[0]["lr"]) == 0.25
        assert (held is optimiser.param_groups[0]["lr"]) == isinstance(lr, Tensor)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "pool.kind": "fresh",
            "pool.epoch_steps": 5,
            "pool.steps_between": 4,
            "deployment.latent_stds": (),
            "deployment.fixed_latents": 0,
        },
        {
            f"{stage}.{field}": value
            for stage in ("stage1", "stage2")
            for field, value in (("adversarial.discriminator_steps", 2), ("adversarial.r1_every", 3), ("steps", 24))
        },
    ],
    ids=["kept", "fresh", "two discriminator steps"],
)
def test_a_recorded_distillation_is_the_plain_one(
    changes: dict[str, object], recorded: list[Replayed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of step holds all that it depends on: a closure over another step's values would show."""
    overrides = {"pool.architectures": ("mlp",), "stage1.steps": 12, "stage2.steps": 12, "autocast": "off", **changes}
    distill(make_images(), quick(**overrides), tmp_path / "plain", device="cpu")
    assert recorded == []
    monkeypatch.setattr(dim.execution.cuda_graphs, "MIN_REPLAYS", 1)
    made = GraphedSteps.__init__

    def recording(self: GraphedSteps, device: torch.device, *, wanted: bool = True, **rest: str) -> None:
        made(self, device, wanted=wanted, **rest)
        self.recording = wanted

    monkeypatch.setattr(GraphedSteps, "__init__", recording)
    # A rate in a tensor is float32; here the sums shall be the same to the last bit.
    monkeypatch.setattr("dim.distillation.adversarial.capturable_lr", lambda rate, steps: rate)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, capturable=False, **options: adam(*args, **options))
    distill(make_images(), quick(**overrides), tmp_path / "recorded", device="cpu")
    assert sum(graph.replays for graph in recorded) > 12
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "recorded")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
def test_a_replayed_step_trains_as_the_step_does_on_a_gpu() -> None:
    device = torch.device("cuda")
    found = []
    for wanted in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8).to(device)
        steps = GraphedSteps(device, wanted=wanted)
        optimiser = torch.optim.Adam(
            layer.parameters(), lr=capturable_lr(0.1, steps), fused=True, capturable=steps.recording
        )

        def step(generator: torch.Generator, scale: Tensor, layer=layer, optimiser=optimiser) -> dict[str, Tensor]:
            loss = (layer(torch.randn(16, 8, device=device, generator=generator)) * scale).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return {"loss": loss.detach()}

        with use_own_stream(device):
            for number in range(20):
                set_lr(optimiser, 0.1 / (number + 1))
                steps.take("a", step, torch.tensor(1.0 + number, device=device), left=MANY, seed=number)
        found.append(layer.weight.detach().cpu())
    torch.testing.assert_close(*found)


@pytest.mark.gpu
def test_a_replayed_step_draws_among_alternatives_as_the_step_does_on_a_gpu() -> None:
    device = torch.device("cuda")
    images = torch.arange(8.0, device=device).reshape(2, 1, 4).repeat(3, 1, 4, 1)
    grey = images.mean(dim=1, keepdim=True).expand_as(images)

    def step(generator: torch.Generator, images: Tensor) -> dict[str, Tensor]:
        return {"seen": augment(images, "flip=1|saturation=0|none", generator)}

    drawn = []
    for wanted in (True, False):
        steps = GraphedSteps(device, wanted=wanted)
        kinds = []
        with use_own_stream(device):
            for number in range(60):
                seen = steps.take("a", step, images, left=MANY, seed=number)["seen"]
                kinds.append([torch.equal(seen, other) for other in (images.flip(3), grey, images)].index(True))
        drawn.append(kinds)
    assert drawn[0] == drawn[1] and set(drawn[0]) == {0, 1, 2}


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["stage1", "pool", "stage2"])
def test_a_run_on_a_gpu_goes_on_between_two_lines_of_its_log(stage: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if (what, done) == (stage, 5):
            raise Stop

    config = quick(log_steps=4, checkpoint_steps=1)
    with pytest.raises(Stop):
        distill(make_images(), config, tmp_path, device="gpu", progress=interrupt)
    assert distill(make_images(), config, tmp_path, device="gpu", resume=True).finished
