"""The protocol of an engine, a caller's options, and the inputs of the function that opens one."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.cores import check_threads
from dim.runtime.engines.names import DEVICES, ENGINES, PRECISIONS, describe_unknown
from dim.runtime.errors import BadValueError, EngineError
from dim.runtime.gpu.driver import Driver

_PIN = re.compile(r"sha256:([0-9a-f]{64})")


class Engine(Protocol):
    """Something that turns latents and labels into images; `run` may be called from several threads at once."""

    reason: str
    """Why this engine was chosen, one clause."""

    @property
    def name(self) -> str:
        """One of ENGINES."""

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""

    @property
    def precision(self) -> str:
        """One of PRECISIONS."""

    @property
    def batch(self) -> int | None:
        """The constant batch that every run is padded to, or None where pixels do not depend on the batch size."""

    @property
    def version(self) -> str:
        """The library and its version."""

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images.

        Args:
            latents: float32 [N, Z].
            labels: int64 [N], already checked to lie in 0..K-1; N at most `batch` where that is set.

        Returns:
            uint8 [N, H, W, C].
        """

    def close(self) -> None:
        """Give back memory and device; harmless when called twice."""


def run_ahead(
    engine: Engine, batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]
) -> Iterator[NDArray[np.uint8]]:
    """Draw batch after batch, each as `Engine.run`; a GPU computes the next ones while one is handed out."""
    ahead = getattr(engine, "run_ahead", None)
    if ahead is not None:
        yield from ahead(batches)
        return
    for latents, labels in batches:
        yield engine.run(latents, labels)


def make_drawing_error(name: str, doing: str, reason: str) -> EngineError:
    """Make the error of an engine that was open and failed, with what to do about it.

    Args:
        name: of the engine.
        doing: what it did, as the end of a sentence ("failed while drawing 64 images").
        reason: what its library says, without a full stop.
    """
    if re.search("memory|alloc", reason, re.IGNORECASE):
        advice = "free some memory, or use a machine with more, and run the same command again."
    else:
        advice = "dim verify says whether it is the bundle, and dim doctor whether it is the engine."
    return EngineError(f"{name} {doing} ({reason}): {advice}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine is wanted. Without arguments: the best that works here, in fp32.

    Raises:
        BadValueError: an unknown engine, device or precision, an engine that does not run on the device or in the
            precision, a number of threads below 1 or beyond the machine, or a pin of another form.
    """

    engine: str = "auto"
    """"auto", or an engine's name, which is then opened or fails."""
    device: str = "auto"
    """"auto", "cpu" or "gpu"; "gpu" fails where there is none, nothing falls back in silence; "cuda" becomes "gpu"."""
    precision: str | None = None
    """"fp32", "fp16", "int8", "bf16" (by openvino-cpu alone), or "auto": bf16 where this processor and OpenVINO have
    it, else as None, which is fp32, or whatever a compiled engine that fits has. Training sets take no "auto"."""
    threads: int | None = None
    """Threads of a CPU engine; None for every core this process may use."""
    trust: Sequence[str] = ()
    """Each "sha256:..." of a compiled engine that may be loaded though it was built elsewhere; kept as a tuple."""

    def __post_init__(self) -> None:
        if self.engine != "auto" and self.engine not in ENGINES:
            raise BadValueError(describe_unknown(self.engine))
        if self.device == "cuda":
            object.__setattr__(self, "device", "gpu")
        if self.device not in DEVICES:
            raise BadValueError(f"There is no device {self.device!r}; there are {', '.join(DEVICES)}.")
        if self.engine != "auto" and self.device not in ("auto", ENGINES[self.engine]):
            raise BadValueError(
                f"The engine {self.engine} runs on the {ENGINES[self.engine]}, not on the {self.device}."
            )
        if self.precision not in (None, "auto", *PRECISIONS):
            raise BadValueError(f"There is no precision {self.precision!r}; there are {', '.join(PRECISIONS)}.")
        if self.precision == "bf16" and (self.device == "gpu" or self.engine not in ("auto", "openvino-cpu")):
            other = "on a GPU" if self.engine == "auto" else f"by {self.engine}"
            raise BadValueError(f"bf16 is drawn by openvino-cpu alone, on the CPU, not {other}.")
        if self.engine == "openvino-cpu" and self.precision in ("fp16", "int8"):
            raise BadValueError(f"The engine openvino-cpu draws in fp32 or bf16, not in {self.precision}.")
        check_threads(self.threads)
        object.__setattr__(self, "trust", tuple(self.trust))
        parse_pins(self.trust)


def parse_pins(trust: Iterable[str]) -> frozenset[str]:
    """Read the hashes that a user pinned.

    Args:
        trust: each `sha256:` and 64 lower-case hexadecimal digits.

    Returns:
        the hashes without their prefix.

    Raises:
        BadValueError: a value of another form.
    """
    hashes = set()
    for pin in trust:
        match = _PIN.fullmatch(pin)
        if match is None:
            raise BadValueError(
                f"--trust got {pin!r}; it takes sha256: and the 64 lower-case hexadecimal digits that  sha256sum  "
                "prints for the .engine file."
            )
        hashes.add(match[1])
    return frozenset(hashes)


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an opener gets to work with."""

    path: Path
    """The bundle's folder."""
    manifest: Manifest
    """The bundle's manifest."""
    options: EngineOptions
    """What the caller asked for."""
    batch: int | None
    """The padded batch of a GPU engine; None for the engine's own, halved at the start where the GPU is full."""
    driver: Driver | None
    """What the NVIDIA driver says; None where no GPU engine is wanted."""
    say: Callable[[str], None] = field(repr=False)
    """Gets each sentence for the user."""

    @property
    def precision(self) -> str:
        """The precision asked for, fp32 where none was; never "auto", which `open_engine` settles first."""
        return self.options.precision or "fp32"
