"""Compiled classifiers: `torch.compile` on a CPU for the networks in which it pays, those with instance norm.

One function is compiled for all of them: new students of the same network and size run the code of the first, and so do
batches of any number of images. The private cache keeps the code for other processes. Whether to compile is decided by
a probe before anything is trained, and a later failure is an error: no network is ever trained partly by compiled and
partly by plain code.

Generators and discriminators are not compiled: convolutions are nearly all of their steps, R1 differentiates twice,
which compiled graphs do not support, and the rest of a step became slower (lab/LOG.md).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dim.runtime.errors import DeviceError, DimError
from dim.runtime.storage.private_cache import cache_folder, recall, remember

# A CUDA build of torch on a machine without a GPU would say in every process that it found no CUDA runtime.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

BACKEND = "inductor"
"""What `torch.compile` compiles with."""
MAX_GRAPHS = 64
"""Most combinations of network, size, mode and precision in one process; torch's default of eight ends in plain code
without a word."""
_CHECK = "compilers"
"""Kind of the notes in the private cache about compilers that work."""


class Network(Protocol):
    """What can be compiled."""

    def outputs(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]: ...


def can_compile(wanted: str, device: torch.device, say: Callable[[str], None] = lambda line: None) -> bool:
    """Whether networks that gain by it are compiled.

    Args:
        wanted: `on`; `off`; or `auto`: on a CPU with a C++ compiler.
        device: of the networks.
        say: receives a line where `auto` finds that nothing can be compiled.

    Raises:
        DeviceError: `on` where nothing can be compiled.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cpu"):
        return False
    reason = _find_obstacle(device)
    if reason is None:
        return True
    if wanted == "on":
        raise DeviceError(f"torch.compile does not work here: {reason}.")
    say(f"ConvNets run without torch.compile, which takes longer: {reason}.")
    return False


def run_compiled(network: Network, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """`network.outputs(images_NCHW)` by compiled code, which is made when it is first needed.

    Args:
        network: of a machine where `can_compile` said yes, its weights in channels last.
        images_NCHW: float `[N, C, H, W]`; code for one N serves all others.

    Raises:
        DeviceError: the code cannot be made.
    """
    compiled = _compiled(torch.get_num_threads())
    torch._dynamo.maybe_mark_dynamic(images_NCHW, 0)
    try:
        outputs: tuple[Tensor, Tensor] = compiled(network, images_NCHW)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise DeviceError(
            f"torch.compile failed ({_first_lines(error)}): go on without it by --no-compile for students, or "
            "--set compile=off for a distillation."
        ) from error
    return outputs


def _outputs(network: Network, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    return network.outputs(images_NCHW)


@functools.cache
def _compiled(threads: int) -> Callable[[Network, Tensor], tuple[Tensor, Tensor]]:
    # Code for another number of threads may lie in the cache, whose key would not tell.
    options: dict[str, Any] | None = {"cpp.threads": threads} if BACKEND == "inductor" else None
    _prepare_compiler()
    return torch.compile(_outputs, backend=BACKEND, fullgraph=True, dynamic=False, options=options)


def _prepare_compiler() -> None:
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    import torch._dynamo.config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if chosen in (None, default_cache_dir()):  # torch itself sets its default, a folder in /tmp, when it is imported
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder("compiled"))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)


@functools.cache
def _find_obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled; None where something was by this torch and this compiler."""
    compilers = _find_compilers()
    if device.type == "cpu" and not compilers:
        return "there is no C++ compiler (install g++, or name yours in CXX)"
    tried = f"{BACKEND} {torch.__version__} {device.type} {os.environ.get('CXX', '')} {compilers}"
    key = hashlib.sha256(tried.encode()).hexdigest()
    if recall(_CHECK, key) is not None:  # the probe and the imports that it needs take nine seconds of a core
        return None
    try:
        _prepare_compiler()
        # A shape of its own, or code kept from an earlier run would hide that the compiler is gone.
        probe = torch.compile(_probe, backend=BACKEND, dynamic=False)
        probe(torch.ones(1024 + os.getpid(), device=device))
    except (RuntimeError, OSError, ImportError, DimError) as error:
        return _first_lines(error)
    remember(_CHECK, key)
    return None


def _find_compilers() -> list[tuple[str, int]]:
    """Path and size of every C++ compiler that torch could take."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    paths = [os.path.realpath(path) for name in names if name and (path := shutil.which(name))]
    return [(path, os.stat(path).st_size) for path in paths]


def _probe(values: Tensor) -> Tensor:
    return values * 2 + 1


def _first_lines(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(lines[:2])[:300].rstrip(".")  # the first line often names the compiler alone
