"""Training steps as CUDA graphs: recorded once, then started by the host in one call.

A step of small networks is a thousand kernels of a few microseconds each, and a GPU finishes them faster than Python
starts them. A graph starts them all at once. Its random numbers are those of the step itself: a replay reads the seed
of the generator at that moment.

A graph records what a step launches, not what it computes on the host. So whatever differs between steps must be a
tensor among its inputs, a learning rate in a tensor, the generator's seed, or part of the step's kind.
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
"""Trains on the draws of a generator and on tensors; returns scalars by name."""

WARMUP_STEPS = 2
"""Eager steps of a kind before one is recorded: optimiser state, cuDNN autotuning, torch.compile."""
MIN_REPLAYS = 30
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
    """Takes training steps: on a GPU as CUDA graphs, elsewhere eagerly.

    Args:
        device: of everything that the steps touch.
        wanted: whether steps may be recorded.
        remedy: the option that turns recording off, for the message of an error.
    """

    def __init__(self, device: torch.device, *, wanted: bool = True, remedy: str = "--set graphs=off") -> None:
        self.recording = wanted and device.type == "cuda"
        self.generator = torch.Generator(device=device)
        self.remedy = remedy
        self._eager_steps: dict[Hashable, int] = {}
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
            taken = self._eager_steps.get(kind, 0)
            if taken < WARMUP_STEPS or left < MIN_REPLAYS:
                self._eager_steps[kind] = taken + 1
                with warnings.catch_warnings():
                    # Optimisers that can be recorded say so when they are not.
                    warnings.filterwarnings("ignore", message=".*capturable=True")
                    return step(self.generator, *inputs)
            graph = self._graphs[kind] = self._record(step, inputs)
        return graph.replay(inputs)

    def forget(self) -> None:
        """Drop the recorded graphs: for when a network of the steps is replaced by another."""
        self._eager_steps.clear()
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
    """One stream per device: freed memory serves only the stream that used it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def use_own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, work on a stream other than the default, which cannot be recorded; elsewhere do nothing."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def capturable_lr(rate: float, steps: GraphedSteps) -> float | Tensor:
    """A learning rate for an optimiser: a tensor, which may change, where its steps are recorded."""
    return torch.tensor(rate, device=steps.generator.device) if steps.recording else rate


def set_lr(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, in place where it is a tensor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
