"""What `dim bench` found out: the rows of its table, its JSON and its chart."""

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
    best: bool
    """The batch at which this contender draws most images per second."""
    share_of_product_rate: float | None
    """Arithmetic reached, as a share of the matrix-product rate measured on this device; None where none was."""


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
class ProductRate:
    """The rate of matrix products, measured through an engine."""

    engine: str
    precision: str
    device: str
    gflop_per_s: float


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
    machine: str
    cores: int
    gpu: str | None
    gflop_per_image: float
    rounds: int
    results: tuple[Result, ...]
    ratios: tuple[Ratio, ...]
    product_rates: tuple[ProductRate, ...]
    not_run: tuple[NotRun, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values; `results` is a list of objects."""
        return asdict(self)

    def ratio(self, engine: str, precision: str, against: str, against_precision: str, batch: int) -> float | None:
        """The measured ratio of two contenders, None where they did not meet."""
        for each in self.ratios:
            pair = (each.engine, each.precision, each.against, each.against_precision, each.batch)
            if pair == (engine, precision, against, against_precision, batch):
                return each.ratio
        return None
