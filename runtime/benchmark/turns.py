"""Contenders taking turns at a batch size, so that their ratios come from neighbours in time."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.benchmark.report import NotRun, ProductRate, Ratio, Result
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import DimError, EngineError

OTHER_BATCHES = (16, 128, 512, 2048, 4096)
"""Tried once each in the search for an engine's best batch."""
LONGEST_RUN_S = 10.0
"""A batch that takes longer is left out for that contender, and said."""
HOPELESS_S = 60.0
"""A batch that would take longer at the speed of smaller ones, which flatter nobody, is not even tried."""
LONGEST_PROBE_S = 3.0
"""As LONGEST_RUN_S, in the search for the best batch."""

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
Clock = Callable[[], float]
Key = tuple[str, str, str]
"""Engine, precision, device."""


class Runner(Protocol):
    """A contender opened at one batch size."""

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        """Draw batch after batch into host memory, as far ahead as it can."""

    def close(self) -> None:
        """Give back memory and device."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something whose speed is measured."""

    engine: str
    """An engine's name, or "torch-eager", "torch-channels-last", "torch-compile"."""
    precision: str
    device: str
    """ "cpu" or "gpu"."""
    open: Callable[[int], Runner]
    """Takes the batch; raises a DimError where it cannot run."""

    @property
    def key(self) -> Key:
        """Engine, precision and device."""
        return (self.engine, self.precision, self.device)


class Turns:
    """Contenders taking turns, and the measurements so far; a method per step of a benchmark."""

    def __init__(
        self,
        manifest: Manifest,
        contenders: Sequence[Contender],
        rounds: int,
        sample_s: float,
        clock: Clock,
        progress: Callable[[str, int, int], None],
        steps: int,
    ) -> None:
        self.contenders = list(contenders)
        self.samples: dict[int, dict[Key, list[tuple[float, float]]]] = {}
        """Batch -> contender -> (images per second, latency in seconds) of each round."""
        self.probed: dict[Key, dict[int, tuple[float, float]]] = {}
        """Contender -> other batch -> images per second and latency, not interleaved."""
        self.not_run: list[NotRun] = []
        self._manifest = manifest
        self._rounds, self._sample_s, self._clock = rounds, sample_s, clock
        self._progress, self._done = progress, 0
        self._steps = steps * len(self.contenders)

    def compare(self, batch: int) -> None:
        """Let every contender take turns at one batch size."""
        inputs = self._inputs(batch)
        runners: dict[Key, tuple[Runner, int]] = {}
        try:
            for contender in self.contenders:
                self._progress(f"{contender.engine} {contender.precision}, batch {batch}", self._done, self._steps)
                self._done += 1
                runner = self._open(contender, batch)
                if runner is not None:
                    try:
                        runners[contender.key] = (runner, self._runs_per_turn(runner, inputs))
                    except DimError as error:
                        self._skip(contender, batch, str(error))
                        runner.close()
            turns = self.samples.setdefault(batch, {key: [] for key in runners})
            for number in range(self._rounds):
                order = list(runners)
                for key in order[number % max(1, len(order)) :] + order[: number % max(1, len(order))]:
                    runner, runs = runners[key]
                    turns[key].append(self._turn(runner, inputs, runs))
        finally:
            for runner, _ in runners.values():
                runner.close()

    def search_best(self) -> None:
        """Try other batch sizes, each engine by itself; what takes long is passed over in silence."""
        for contender in self.contenders:
            if contender.engine.startswith("torch") or not any(
                contender.key in turns for turns in self.samples.values()
            ):
                continue
            for batch in OTHER_BATCHES:
                if batch in self.samples or self._expected_s(contender, batch) > LONGEST_PROBE_S:
                    continue
                runner = self._open(contender, batch)
                if runner is None:
                    continue
                try:
                    inputs = self._inputs(batch)
                    turn = self._turn(runner, inputs, self._runs_per_turn(runner, inputs))
                    self.probed.setdefault(contender.key, {})[batch] = turn
                except DimError as error:
                    self._skip(contender, batch, str(error))
                finally:
                    runner.close()

    def results(self, flop: float, rates: Sequence[ProductRate]) -> Iterator[Result]:
        """One row per contender and batch; of the other batches only the best, if it is best of all."""
        rate_of = {(rate.device, rate.precision): rate.gflop_per_s * 1e9 for rate in rates}
        for contender in self.contenders:
            key = contender.key
            rows = {
                batch: (statistics.median(t[0] for t in turns[key]), statistics.median(t[1] for t in turns[key]))
                for batch, turns in self.samples.items()
                if turns.get(key)
            }
            if not rows:
                continue
            rows |= self.probed.get(key, {})
            best = max(rows, key=lambda batch: rows[batch][0])
            precision = contender.precision if (contender.device, contender.precision) in rate_of else "fp32"
            rate = rate_of.get((contender.device, precision))
            for batch in sorted(rows):
                if batch not in self.samples and batch != best:
                    continue
                images_per_s, latency_s = rows[batch]
                yield Result(
                    engine=contender.engine,
                    precision=contender.precision,
                    device=contender.device,
                    batch=batch,
                    images_per_s=images_per_s,
                    latency_ms=latency_s * 1000,
                    best=batch == best,
                    share_of_product_rate=None if rate is None else images_per_s * flop / rate,
                )

    def ratios(self) -> Iterator[Ratio]:
        """Every engine against every torch contender, and against ONNX Runtime fp32, on its own device."""
        for batch, turns in self.samples.items():
            for key in turns:
                for other in turns:
                    reference = other[0].startswith("torch") or other[:2] in (
                        ("onnxruntime-cpu", "fp32"),
                        ("onnxruntime-cuda", "fp32"),
                    )
                    if key == other or key[2] != other[2] or not reference or key[0].startswith("torch"):
                        continue
                    pairs = [ours[0] / theirs[0] for ours, theirs in zip(turns[key], turns[other], strict=True)]
                    yield Ratio(
                        engine=key[0],
                        precision=key[1],
                        device=key[2],
                        against=other[0],
                        against_precision=other[1],
                        batch=batch,
                        ratio=statistics.median(pairs),
                        least=min(pairs),
                        most=max(pairs),
                    )

    def _open(self, contender: Contender, batch: int) -> Runner | None:
        failed = next((row for row in self.not_run if _key(row) == contender.key and row.batch is None), None)
        if failed is not None:
            return None
        expected_s = self._expected_s(contender, batch)
        if expected_s > HOPELESS_S:
            self._skip(contender, batch, f"one run would take about {expected_s:.0f} s")
            return None
        try:
            return contender.open(batch)
        except DimError as error:
            # Before anything of it has run, the reason is the contender's; later it is the batch's.
            self._skip(contender, batch if self._known(contender.key) else None, str(error))
            return None

    def _expected_s(self, contender: Contender, batch: int) -> float:
        """Seconds of one run at the speed of the batches that were measured; 0 where none was."""
        return batch / max((turn[0] for turn in self._known(contender.key)), default=float("inf"))

    def _known(self, key: Key) -> list[tuple[float, float]]:
        return [turn for turns in self.samples.values() for turn in turns.get(key, [])]

    def _skip(self, contender: Contender, batch: int | None, reason: str) -> None:
        engine, precision, device = contender.key
        self.not_run.append(NotRun(engine=engine, precision=precision, device=device, batch=batch, reason=reason))

    def _inputs(self, batch: int) -> Batch:
        rng = np.random.default_rng(batch)
        latents = rng.standard_normal((batch, self._manifest.latent_dim)).astype(np.float32)
        return latents, np.arange(batch, dtype=np.int64) % self._manifest.num_classes

    def _runs_per_turn(self, runner: Runner, inputs: Batch) -> int:
        """Warm up, and see how many runs fill a turn.

        Raises:
            EngineError: one run takes longer than there is patience for.
        """
        seconds = []
        for _ in range(3):
            start = self._clock()
            for _ in runner.run_ahead([inputs]):
                pass
            seconds.append(self._clock() - start)
            if len(seconds) == 2 and min(seconds) > LONGEST_RUN_S:
                raise EngineError(f"one run takes {min(seconds):.0f} s")
        return max(1, round(self._sample_s / max(min(seconds), 1e-6)))

    def _turn(self, runner: Runner, inputs: Batch, runs: int) -> tuple[float, float]:
        start = self._clock()
        for _ in runner.run_ahead([inputs] * runs):
            pass
        throughput_s = self._clock() - start
        if runs == 1:
            return len(inputs[1]) / throughput_s, throughput_s
        singles = []
        for _ in range(min(runs, 5)):
            start = self._clock()
            for _ in runner.run_ahead([inputs]):
                pass
            singles.append(self._clock() - start)
        return runs * len(inputs[1]) / throughput_s, statistics.median(singles)


def _key(row: NotRun) -> Key:
    return (row.engine, row.precision, row.device)
