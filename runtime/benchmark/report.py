"""What `dim bench` found out: the rows of its table, its JSON and its chart."""

from dataclasses import asdict, dataclass
from typing import Any

GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
"""Engines of a GPU, the fastest first."""
GPU_TFLOP_PER_S = 500.0
"""Arithmetic that a data-centre GPU sustains in half precision; half of it is promised."""


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

    def ratio(self, engine: str, precision: str, against: str, against_precision: str, batch: int) -> float | None:
        """Return the measured ratio of two contenders, None where they were not measured together."""
        for each in self.ratios:
            pair = (each.engine, each.precision, each.against, each.against_precision, each.batch)
            if pair == (engine, precision, against, against_precision, batch):
                return each.ratio
        return None


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


def check_promises(report: BenchReport, resizes: bool, batch: int = 256) -> list[dict[str, Any]]:
    """Compare a report with the promised speeds, at one batch size.

    Args:
        report: of an interleaved run.
        resizes: the generator upsamples by resize + convolution; int8 gains little on transposed convolutions.
        batch: images per call.

    Returns:
        objects with `claim`, `found`, `least`, and `holds`, which is None where it was not measured.
    """
    cpu, fp32 = "onnxruntime-cpu", "fp32"
    promises: list[tuple[str, float | None, float]] = []
    if "cpu" in {row.device for row in report.results} | {each.device for each in report.ratios}:
        promises += [
            ("fp32 ONNX Runtime against torch eager", report.ratio(cpu, fp32, "torch-eager", fp32, batch), 2.0),
            (
                "fp32 ONNX Runtime against channels_last",
                report.ratio(cpu, fp32, "torch-channels-last", fp32, batch),
                1.5,
            ),
        ]
        if resizes:
            promises.append(("int8 against fp32 on the CPU", report.ratio(cpu, "int8", cpu, fp32, batch), 2.5))
    if any(each.engine == "openvino-cpu" for each in report.ratios):
        openvino, bf16 = "openvino-cpu", "bf16"
        promises += [
            ("fp32 OpenVINO against ONNX Runtime", report.ratio(openvino, fp32, cpu, fp32, batch), 1.0),
            ("bf16 OpenVINO against fp32 ONNX Runtime", report.ratio(openvino, bf16, cpu, fp32, batch), 2.0),
            (
                "bf16 OpenVINO against torch.compile bf16",
                report.ratio(openvino, bf16, "torch-compile", bf16, batch),
                1.0,
            ),
        ]
    ran = {row.engine for row in report.results if row.device == "gpu"}
    best = next((engine for engine in GPU_ENGINES if engine in ran), None)
    if best is not None:
        fp16 = report.ratio(best, "fp16", "torch-compile", "fp16", batch)
        promises.append((f"fp16 {best} against torch.compile fp16", fp16, 1.5))
        fastest = max(row.images_per_s for row in report.results if row.engine == best)
        floor = GPU_TFLOP_PER_S * 1e3 / report.gflop_per_image
        promises.append((f"{best} against {GPU_TFLOP_PER_S:g} TFLOP/s of arithmetic", fastest / floor, 0.5))
    return [
        {"claim": claim, "found": found, "least": least, "holds": None if found is None else found >= least}
        for claim, found, least in promises
    ]
