"""The options of `benchmark`: what it measures, and for how long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dim.runtime.engines.names import DEVICES, ENGINES, OFFERED_ENGINES, describe_unknown
from dim.runtime.errors import BadValueError

BATCHES = (1, 64, 256, 1024)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """A benchmark as a caller asks for it.

    Raises:
        BadValueError: an unknown engine or device, or a number out of range.
    """

    engines: Sequence[str] | None = None
    """Names from `dim.runtime.engines.names.ENGINES`; None for all but the fake one, empty for the rivals alone."""
    precisions: Sequence[str] | None = None
    """Of "fp32", "fp16", "int8", "bf16" and "auto", for what `settle_precision` takes here; None for all there are."""
    device: str = "auto"
    """"auto" for both, "cpu" or "gpu"."""
    batches: Sequence[int] = BATCHES
    """Images per call, in the order in which they are measured."""
    threads: int | None = None
    """Threads of CPU engines; None for every core this process may use."""
    trust: Sequence[str] = ()
    """"sha256:..." of prebuilt engines that may be loaded."""
    rounds: int = 5
    """Turns of each contender at each batch size."""
    turn_s: float = 0.25
    """Seconds that a contender draws in its turn, at least."""
    find_best: bool = True
    """Look for each engine's best batch size among `PROBED_BATCHES`, too."""
    time_limit_s: float | None = None
    """Seconds after which nothing more is opened and no further round begins; the first contender that runs is always
    measured, and each that was opened has one turn. None for no limit."""

    def __post_init__(self) -> None:
        for name in self.engines or ():
            if name not in ENGINES:
                raise BadValueError(describe_unknown(name, OFFERED_ENGINES))
        if self.device not in DEVICES:
            raise BadValueError(f"There is no device {self.device!r}; there are {', '.join(DEVICES)}.")
        if not self.batches or min(self.batches) < 1:
            raise BadValueError(f"The batches are {list(self.batches)}; each must be at least 1.")
        if self.rounds < 1 or not 0 < self.turn_s < math.inf:
            raise BadValueError(
                f"There must be at least 1 round and some time per turn, not {self.rounds} and {self.turn_s} s."
            )
