"""The results of `dim bench`: its table, its JSON and its chart."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One contender at one batch size."""

    engine: str
    precision: str
    device: str
    batch: int
    images_per_s: float
    """Median over the rounds, batches overlapping where the engine can."""
    latency_ms: float
    """Median time from one batch of latents to its images on the host."""
    turns: int
    """Turns that the medians are of; 0 where an interruption left the warm-up alone."""
    best: bool
    """The batch at which this contender draws most images per second in its turns."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How much faster one contender is than another, from one interleaved run."""

    engine: str
    precision: str
    device: str
    against: str
    against_precision: str
    batch: int
    ratio: float
    """Median over the rounds."""
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """A contender that could not be measured, or not at a batch size."""

    engine: str
    precision: str
    device: str
    batch: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything that was measured."""

    bundle: str
    content_id: str
    dim: str
    date: str
    """When it ended, UTC."""
    machine: str
    cores: int
    threads: int
    """Of CPU engines."""
    load: float | None
    """Runnable processes in the minute before: near 0 on a quiet machine; None where the system does not say."""
    gpu: str | None
    versions: dict[str, str]
    """Of the packages that draw and of the GPU's driver."""
    gflop_per_image: float
    """Arithmetic of one image in 10^9 floating-point operations."""
    rounds: int
    results: tuple[Result, ...]
    ratios: tuple[Ratio, ...]
    not_run: tuple[NotRun, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values; `results` is a list of objects."""
        return asdict(self)


def recommend_precision(report: BenchReport) -> str | None:
    """Say in a sentence which precision pays, by the best batch of each; None where nothing was measured.

    A precision is worth its loss of quality only where it is a tenth faster than every better one, so nothing slower
    than bf16 is named.
    """
    speeds: dict[str, Result] = {}
    for row in report.results:
        known = speeds.get(row.precision)
        if not row.engine.startswith("torch") and (known is None or row.images_per_s > known.images_per_s):
            speeds[row.precision] = row
    pays: list[Result] = []
    for precision in ("fp32", "fp16", "bf16", "int8"):
        fastest = speeds.get(precision)
        if fastest is not None and (not pays or fastest.images_per_s > 1.1 * pays[-1].images_per_s):
            pays.append(fastest)
    if not pays:
        return None
    steps = [f"{pays[0].precision} by {pays[0].engine}"] + [
        f"{row.precision} by {row.engine}, {row.images_per_s / before.images_per_s:.1f} times as fast"
        for before, row in zip(pays, pays[1:], strict=False)
    ]
    return f"What pays here, from exact to fast: {'; '.join(steps)}."
