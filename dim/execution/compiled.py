"""Which networks of the adversarial training `torch.compile` turns into faster code, and when.

Compiled: the generator, and the discriminator wherever no gradient of its gradient is taken. R1 and the gradient
penalty of WGAN-GP differentiate the discriminator twice, which compiled graphs do not support, so those passes stay as
they are: one in `r1_every` steps, or with WGAN-GP every step of the discriminator. The pool's classifiers stay too:
each is another graph to compile, for a few hundred passes. In data-parallel runs nothing is compiled, because batch
statistics travel between the processes in the middle of the generator.

On a CPU it does not pay: the ratio to the published recipe fell from 1.6 to 2.1 down to 1.3 in stage 1 and from 1.9 to
2.1 down to 1.6 in stage 2 (`lab/distill_speed.py --preset tiny --compile on`, fp32, one busy core). On a GPU, where
CUDA graphs take the time between kernels away (`dim.execution.cuda_graphs`), it has not been measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dim.config import DistillConfig
from dim.execution.distributed import World
from dim.runtime.errors import BadValueError, DeviceError

BACKEND = "inductor"
"""What `torch.compile` compiles with."""
MIN_STEPS_TO_COMPILE = 10_000
"""Steps of both stages below which `auto` compiles nothing: an estimate, for compiling takes a minute or two."""


def choose_compiler(config: DistillConfig, device: torch.device, world: World) -> Callable[[nn.Module], Any]:
    """What to pass the networks through.

    Args:
        config: its `compile` is `on`, `off` or `auto`.
        device: `auto` compiles on GPUs only, and there only where there are no CUDA graphs.
        world: this process among all.

    Returns:
        `torch.compile` for fixed shapes, or a function that returns the network as it is.

    Raises:
        BadValueError: `on` in a data-parallel run.
        DeviceError: `on` where nothing can be compiled.
    """
    if config.compile == "on" and world.size > 1:
        raise BadValueError(
            f"compile is 'on' with {world.size} processes; batch statistics that span processes cannot be compiled: "
            "set compile to 'off' or 'auto'."
        )
    steps = config.stage1.steps + config.stage2.steps
    worthwhile = device.type == "cuda" and world.size == 1 and steps >= MIN_STEPS_TO_COMPILE and config.graphs == "off"
    if config.compile == "off" or (config.compile == "auto" and not worthwhile):
        return _leave_eager
    torch.compiler.reset()  # past eight compiled shapes of one function it would run eagerly without a word
    try:
        # A shape of its own, or code kept from an earlier run would hide that the compiler is gone.
        torch.compile(_probe, backend=BACKEND, dynamic=False)(torch.ones(1024 + os.getpid(), device=device))
    except (RuntimeError, OSError, ImportError) as error:
        if config.compile == "auto":
            return _leave_eager
        raise _compiler_error(error, device) from error
    return partial(torch.compile, backend=BACKEND, dynamic=False)


@contextmanager
def explain_compiler_errors(device: torch.device) -> Iterator[None]:
    """Turn the compiler's errors into a sentence: networks are compiled when they are first called.

    Raises:
        DeviceError: instead of an error of `torch.compile`.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise _compiler_error(error, device) from error


def _compiler_error(error: Exception, device: torch.device) -> DeviceError:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    first = " ".join(lines[:2])[:300]  # the first line often names the compiler alone
    needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
    return DeviceError(
        f"torch.compile does not work here ({first}): it needs {needed}; install that, or set compile to 'off'."
    )


def _probe(values: Tensor) -> Tensor:
    return values * 2 + 1


def _leave_eager(network: nn.Module) -> nn.Module:
    return network
