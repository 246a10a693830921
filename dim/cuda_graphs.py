"""Training steps as CUDA graphs: recorded once, then started by the host in one call.

A step of small networks is a thousand kernels of a few microseconds each, and a GPU finishes them faster than Python
starts them. A graph starts them all at once. Its random numbers are those of the step itself: a replay reads the seed
of the generator at that moment.

Recorded is what a step launches, not what it computes on the host: whatever differs from step to step must be a tensor
among its inputs, a learning rate in a tensor, the generator's seed, or part of the step's kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., Mapping[str, Tensor]]
"""Takes a generator and tensors, trains, and returns scalars by name."""

MEETINGS = 2
"""Steps of a kind that run as they are before one is recorded: they make the optimiser's state, let cuDNN choose its
algorithms, and have compiled code compiled."""


class Graph:
    """One kind of step, recorded.

    Args:
        step: what to record; nothing of it runs yet.
        generator: of its draws.
        inputs: tensors of the shapes, strides and dtypes of all to come.
        memory: of `torch.cuda.graph_pool_handle`, shared by graphs that never run at the same time.

    Raises:
        RuntimeError: the step does something that cannot be recorded, such as waiting for a value.
    """

    def __init__(self, step: Step, generator: torch.Generator, inputs: tuple[Tensor, ...], memory: Any) -> None:
        self.inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph, pool=memory, stream=torch.cuda.current_stream()):
            outputs = step(generator, *self.inputs)
            self.names = tuple(outputs)
            self.values = torch.stack([value.detach().float() for value in outputs.values()])

    def replay(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Take the step once with these inputs."""
        for ours, theirs in zip(self.inputs, inputs, strict=True):
            ours.copy_(theirs)
        self.graph.replay()
        # The next replay writes to the same place.
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))


class GraphedSteps:
    """Takes steps, on a GPU as graphs, elsewhere as they are.

    Args:
        device: of everything that the steps touch.
        wanted: whether steps may be recorded.
        say: hears why nothing is recorded any more, where a step cannot be.
    """

    def __init__(
        self, device: torch.device, *, wanted: bool = True, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.recording = wanted and device.type == "cuda"
        self.generator = torch.Generator(device=device)
        self.say = say
        self._met: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, Graph] = {}
        self._memory: Any = None

    def take(self, kind: Hashable, step: Step, *inputs: Tensor, seed: int | None = None) -> Mapping[str, Tensor]:
        """Take one step.

        Args:
            kind: steps of one kind launch the same kernels on tensors of the same shapes.
            step: called with the generator and the inputs; what it returns are scalars on the device.
            inputs: tensors that differ from step to step.
            seed: of the generator; None goes on with it.

        Returns:
            What the step returned.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        graph = self._graphs.get(kind)
        if graph is not None:
            return graph.replay(inputs)
        met = self._met[kind] = self._met.get(kind, 0) + 1
        if self.recording and met > MEETINGS and self._record(kind, step, inputs):
            return self._graphs[kind].replay(inputs)
        with warnings.catch_warnings():
            # Optimisers that can be recorded say so when they are not, as here at first.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            return step(self.generator, *inputs)

    def _record(self, kind: Hashable, step: Step, inputs: tuple[Tensor, ...]) -> bool:
        state = self.generator.get_state()
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        try:
            self._graphs[kind] = Graph(step, self.generator, inputs, self._memory)
        except RuntimeError as error:
            self.recording = False
            # The old one may wait for the end of the recording for ever.
            self.generator = torch.Generator(device=self.generator.device)
            self.generator.set_state(state)
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self.say(f"Steps cannot be recorded as CUDA graphs here ({first}); they run one kernel after another.")
        return self.recording


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, work on a stream of its own: the default one cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def recordable_rate(rate: float, steps: GraphedSteps) -> float | Tensor:
    """A learning rate for an optimiser whose steps may be recorded: on a GPU a tensor, which may change."""
    return torch.tensor(rate, device=steps.generator.device) if steps.recording else rate


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, in place where it is a tensor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
