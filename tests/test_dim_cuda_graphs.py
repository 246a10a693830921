"""Steps as CUDA graphs: what is recorded and when, on the CPU by a stand-in for the graph; the rest needs a GPU."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import dim.cuda_graphs
from dim.cuda_graphs import MEETINGS, GraphedSteps, Step, own_stream, recordable_rate, set_rate
from dim.device_data import seed_of

CPU = torch.device("cpu")


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
    """A step that cannot be recorded."""

    def __init__(self, step: Step, generator: torch.Generator, inputs: tuple[Tensor, ...], memory: object) -> None:
        torch.rand(3, generator=generator)  # a recording may have drawn before it failed
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def recording_steps(monkeypatch: pytest.MonkeyPatch, graph: type[Replayed], said: list[str]) -> GraphedSteps:
    monkeypatch.setattr(graph, "made", [], raising=False)
    monkeypatch.setattr(dim.cuda_graphs, "Graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    steps = GraphedSteps(CPU, say=said.append)
    steps.recording = True
    return steps


def draw(generator: torch.Generator, *inputs: Tensor) -> dict[str, Tensor]:
    return {"value": torch.rand((), generator=generator) + sum(tensor.sum() for tensor in inputs)}


def test_a_step_is_recorded_when_it_has_run_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    steps = recording_steps(monkeypatch, Replayed, said)
    plain = GraphedSteps(CPU)
    for number in range(MEETINGS + 3):
        for kind in ("a", "b"):
            images = torch.full((2,), float(number))
            found = steps.take(kind, draw, images, seed=seed_of(kind, number))
            assert found == plain.take(kind, draw, images, seed=seed_of(kind, number))
        assert len(Replayed.made) == (2 if number >= MEETINGS else 0)
    assert [graph.replays for graph in Replayed.made] == [3, 3]
    assert said == []


def test_without_a_seed_the_generator_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, plain = recording_steps(monkeypatch, Replayed, []), GraphedSteps(CPU)
    found = []
    for each in (steps, plain):
        each.generator.manual_seed(3)
        found.append([float(each.take("a", draw)["value"]) for _ in range(MEETINGS + 3)])
    assert found[0] == found[1] and len(set(found[0])) == MEETINGS + 3


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    steps, plain = recording_steps(monkeypatch, Refused, said), GraphedSteps(CPU)
    found = []
    for each in (steps, plain):
        each.generator.manual_seed(3)
        found.append([float(each.take("a", draw)["value"]) for _ in range(MEETINGS + 3)])
    assert found[0] == found[1]
    assert not steps.recording
    assert said == [
        "Steps cannot be recorded as CUDA graphs here (operation not permitted when stream is capturing); "
        "they run one kernel after another."
    ]


def test_nothing_is_recorded_on_a_cpu_or_where_it_is_not_wanted() -> None:
    assert not GraphedSteps(CPU).recording
    with own_stream(CPU):
        assert GraphedSteps(CPU).take("a", draw, seed=1) == draw(torch.Generator().manual_seed(1))


def test_a_rate_changes_in_place_where_it_is_a_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    steps = GraphedSteps(CPU)
    rate = recordable_rate(0.5, steps)
    assert rate == 0.5 and not isinstance(rate, Tensor)
    steps.recording = True
    tensor = recordable_rate(0.5, steps)
    assert isinstance(tensor, Tensor)
    for lr in (rate, tensor):
        optimiser = torch.optim.SGD([weight], lr=lr)
        held = optimiser.param_groups[0]["lr"]
        set_rate(optimiser, 0.25)
        assert float(optimiser.param_groups[0]["lr"]) == 0.25
        assert (held is optimiser.param_groups[0]["lr"]) == isinstance(lr, Tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_replayed_step_trains_as_the_step_does_on_a_gpu() -> None:
    device = torch.device("cuda")
    weights = []
    for wanted in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8).to(device)
        said: list[str] = []
        steps = GraphedSteps(device, wanted=wanted, say=said.append)
        optimiser = torch.optim.Adam(
            layer.parameters(), lr=recordable_rate(0.1, steps), fused=True, capturable=steps.recording
        )

        def step(generator: torch.Generator, scale: Tensor, layer=layer, optimiser=optimiser) -> dict[str, Tensor]:
            loss = (layer(torch.randn(16, 8, device=device, generator=generator)) * scale).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return {"loss": loss.detach()}

        with own_stream(device):
            for number in range(20):
                set_rate(optimiser, 0.1 / (number + 1))
                steps.take("a", step, torch.tensor(1.0 + number, device=device), seed=number)
        assert steps.recording == wanted and said == []
        weights.append(layer.weight.detach().cpu())
    torch.testing.assert_close(*weights)
