"""Training steps as CUDA graphs: recorded once, then started by the host in one call.

A step of small networks is a thousand kernels of a few microseconds each, and a GPU finishes them faster than Python
starts them. A graph starts them all at once. Its random numbers are those of the step itself: a replay reads the seed
of the generator at that moment.

Recorded is what a step launches, not what it computes on the host: whatever differs from step to step must be a tensor
among its inputs, a learning rate in a tensor, the generator's seed, or part of the step's kind.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dim.runtime.errors import DeviceError

Step = Callable[..., Mapping[str, Tensor]]
"""Takes a generator and tensors, trains, and returns scalars by name."""

MEETINGS = 2
"""Steps of a kind that run as they are before one is recorded: they make the optimiser's state, let cuDNN choose its
algorithms, and have compiled code compiled."""
LEAST_REPLAYS = 30
"""Steps of a kind that must be left to record it: an estimate, for recording takes as long as a few dozen."""


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
        remedy: the option that turns recording off, for the message of an error.
    """

    def __init__(self, device: torch.device, *, wanted: bool = True, remedy: str = "--set graphs=off") -> None:
        self.recording = wanted and device.type == "cuda"
        self.generator = torch.Generator(device=device)
        self.remedy = remedy
        self._met: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, Graph] = {}
        self._memory: Any = None

    def take(
        self, kind: Hashable, step: Step, *inputs: Tensor, left: float, seed: int | None = None
    ) -> Mapping[str, Tensor]:
        """Take one step.

        Args:
            kind: steps of one kind launch the same kernels on tensors of the same shapes.
            step: called with the generator and the inputs; what it returns are scalars on the device.
            inputs: tensors that differ from step to step.
            left: how many steps of the kind are about to come, this one included.
            seed: of the generator; None goes on with it.

        Returns:
            What the step returned.

        Raises:
            DeviceError: the step cannot be recorded. PyTorch's allocator is of no further use in this process then.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        if not self.recording:
            return step(self.generator, *inputs)
        graph = self._graphs.get(kind)
        if graph is None:
            met = self._met.get(kind, 0)
            if met < MEETINGS or left < LEAST_REPLAYS:
                self._met[kind] = met + 1
                with warnings.catch_warnings():
                    # Optimisers that can be recorded say so when they are not.
                    warnings.filterwarnings("ignore", message=".*capturable=True")
                    return step(self.generator, *inputs)
            graph = self._graphs[kind] = self._record(step, inputs)
        return graph.replay(inputs)

    def forget(self) -> None:
        """Drop what was recorded: a network that the steps train or ask has another in its place."""
        self._met.clear()
        self._graphs.clear()

    def _record(self, step: Step, inputs: tuple[Tensor, ...]) -> Graph:
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        try:
            return Graph(step, self.generator, inputs, self._memory)
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # the end of the recording complains as well
                cause = cause.__context__
            first = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200].rstrip(".")
            raise DeviceError(
                f"A training step cannot be recorded as a CUDA graph here ({first}): add {self.remedy}, which takes "
                "longer."
            ) from error


@functools.cache
def _stream(device: torch.device) -> Any:
    """One for all work: memory that was freed on a stream serves that stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, work on a stream of its own: the default one cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
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
