"""PyTorch in `dim bench`: the bundle's generator, run eagerly, in channels_last and compiled.

A bundle holds no PyTorch weights, and speed does not depend on them: the generator is built from the configuration in
the manifest, with random weights, and ends in the same uint8 NHWC images in host memory as every engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dim.networks.generator import generator_from_dict
from dim.runtime.benchmark.contenders import Batch, Contender
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import EngineError, RunError, describe_error

VARIANTS = ("torch-eager", "torch-channels-last", "torch-compile")
ON_CPU = (
    ("fp32", "torch-eager"),
    ("fp32", "torch-channels-last"),
    ("bf16", "torch-channels-last"),
    ("bf16", "torch-compile"),
)
"""What a CPU is asked for: compiling takes so long that only the fastest way is compiled."""
COMPILE_S = 10.0
"""Least time in which `torch.compile` opens a generator; a busy or small machine takes a minute."""
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_rivals(
    manifest: Manifest,
    device: str = "auto",
    *,
    threads: int | None = None,
    variants: Sequence[str] = VARIANTS,
) -> list[Contender]:
    """Make PyTorch's contenders for a bundle.

    Args:
        manifest: the bundle's manifest; its distillation config names the generator.
        device: "auto" for both, "cpu" or "gpu"; CUDA is left out where torch sees none.
        threads: CPU threads; None for torch's own choice.
        variants: some of VARIANTS.

    Returns:
        contenders: of a GPU every variant in fp32 and fp16, of a CPU those of `ON_CPU`.

    Raises:
        RunError: the bundle does not say which generator it was made from.
    """
    config = manifest.distill_config.get("generator")
    if not isinstance(config, dict) or "kind" not in config:
        raise RunError(
            f"The bundle {manifest.name} does not say which generator it was made from, so PyTorch cannot run it."
        )
    chosen: list[tuple[str, str, str]] = []
    if device in ("auto", "gpu") and torch.cuda.is_available():
        chosen += [("gpu", precision, variant) for precision in ("fp32", "fp16") for variant in variants]
    if device in ("auto", "cpu"):
        chosen += [("cpu", precision, variant) for precision, variant in ON_CPU if variant in variants]
    return [
        Contender(
            engine=variant,
            precision=precision,
            device=where,
            open=partial(TorchRunner, config, variant, precision, where, threads),
            open_s=COMPILE_S if variant == "torch-compile" else 0.0,
        )
        for where, precision, variant in chosen
    ]


class Pixels(nn.Module):
    """A generator with the end that every engine's graph has: uint8 NHWC."""

    def __init__(self, generator: nn.Module, precision: str) -> None:
        super().__init__()
        self.dtype = _TYPES[precision]
        self.generator = generator.to(self.dtype)

    def forward(self, latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        images_NCHW: Tensor = self.generator(latents_NZ.to(self.dtype), labels_N)
        scaled = (images_NCHW * 127.5 + 127.5).round().clamp(0, 255)
        return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


class TorchRunner:
    """One PyTorch contender at one batch size; a `Runner`.

    Args:
        config: the arguments of `generator_from_dict`.
        variant: one of VARIANTS.
        precision: "fp32", or "fp16" or "bf16" for half precision inside.
        device: "cpu" or "gpu".
        threads: CPU threads while it draws; None for torch's own choice.
        batch: images per call; `torch.compile` specialises on it.

    Raises:
        EngineError: torch cannot build, compile or run it.
    """

    def __init__(
        self, config: dict[str, Any], variant: str, precision: str, device: str, threads: int | None, batch: int
    ) -> None:
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._threads = threads
        self._name = variant
        # TF32 stays off, as in every fp32 engine here.
        module = Pixels(generator_from_dict(config).eval(), precision).to(self._device)
        # Compiled code of a CPU is fastest in channels_last.
        if variant == "torch-channels-last" or (variant == "torch-compile" and device == "cpu"):
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._draw: Callable[[Tensor, Tensor], Tensor] = module
        if variant == "torch-compile":
            self._draw = torch.compile(module, dynamic=False)
        latent_dim = int(config["latent_dim"])
        warm = np.zeros((batch, latent_dim), np.float32), np.zeros(batch, np.int64)
        for _ in self.run_ahead([warm]):
            pass

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        """Draw batch after batch into host memory."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            with torch.inference_mode():
                for latents, labels in batches:
                    inputs = [torch.from_numpy(array).to(self._device) for array in (latents, labels)]
                    yield self._draw(*inputs).cpu().numpy()
        except RuntimeError as error:  # what torch.compile raises is one too
            raise EngineError(f"{self._name} does not run here: {describe_error(error)}") from error
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """Drop the network."""
        del self._draw
        if self._name == "torch-compile":
            torch.compiler.reset()  # past eight compiled shapes of one function it would run eagerly without a word
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
