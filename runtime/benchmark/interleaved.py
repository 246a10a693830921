"""Measures engines in turns, batch size by batch size, so that ratios compare neighbours in time."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dim.runtime.benchmark.contenders import Batch, Contender, ContenderKey, Runner
from dim.runtime.benchmark.options import BenchOptions
from dim.runtime.benchmark.report import NotRun, Ratio, Result
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import DimError, EngineError
from dim.runtime.progress.show import Progress

PROBED_BATCHES = (16, 128, 512, 2048, 4096)
"""Batch sizes that are tried once each in the search for an engine's best one."""
MAX_RUN_S = 10.0
"""Skip a batch size of which one run takes longer, and say so."""
MAX_PREDICTED_RUN_S = 60.0
"""Skip a batch size whose run time, extrapolated from smaller batches, exceeds this."""
MAX_PROBE_S = 3.0
"""As MAX_PREDICTED_RUN_S, in the search for the best batch, without a word."""

MAX_SINGLE_RUNS = 5
"""Of a turn, one by one, for the latency."""

Clock = Callable[[], float]
"""Seconds, as `time.perf_counter`."""


class Turn(NamedTuple):
    """What a contender did in one of its turns."""

    images_per_s: float
    latency_s: float


class InterleavedRuns:
    """The measurements of contenders that take turns; a method per step of a benchmark.

    Args:
        manifest: of the bundle that is drawn from.
        contenders: what is measured.
        options: rounds, time of a turn, batch sizes and time limit.
        clock: seconds.
        progress: is told how many contenders were opened at a batch size.
    """

    def __init__(
        self,
        manifest: Manifest,
        contenders: Sequence[Contender],
        options: BenchOptions,
        clock: Clock,
        progress: Progress,
    ) -> None:
        self.contenders = list(contenders)
        self.turns: dict[int, dict[ContenderKey, list[Turn]]] = {}
        """Batch size -> contender -> its turn of each round."""
        self.warm_ups: dict[int, dict[ContenderKey, Turn]] = {}
        """Batch size -> contender -> its fastest run before the first round."""
        self.probes: dict[ContenderKey, dict[int, Turn]] = {}
        """Contender -> other batch size -> its only turn, not interleaved."""
        self.not_run: list[NotRun] = []
        self._manifest = manifest
        self._rounds, self._turn_s, self._clock = options.rounds, options.turn_s, clock
        self._began, self._limit_s = clock(), options.time_limit_s
        self._progress, self._done = progress, 0
        self._steps = len(set(options.batches)) * len(self.contenders)

    def compare(self, batch: int) -> None:
        """Let the contenders take turns at one batch size; those that cannot are listed in `not_run`."""
        inputs = self._inputs(batch)
        runners: dict[ContenderKey, tuple[Runner, int]] = {}
        warm_ups = self.warm_ups.setdefault(batch, {})
        round_s = 0.0
        try:
            for contender in self.contenders:
                note = f"{contender.engine} {contender.precision}, batch {batch}"
                self._progress("measuring", self._done, self._steps, note)
                self._done += 1
                runner = self._open(contender, batch, spare_s=round_s)
                if runner is not None:
                    try:
                        warm_ups[contender.key] = turn = self._warm_up(runner, inputs)
                        runs = self._count_runs(turn)
                        round_s += turn.latency_s * _runs_of_turn(runs)
                        runners[contender.key] = (runner, runs)
                    except DimError as error:
                        self._skip(contender, batch, str(error))
                        runner.close()
            turns = self.turns.setdefault(batch, {key: [] for key in runners})
            order = list(runners)
            for number in range(self._rounds):
                if number > 0 and self._is_over(round_s):
                    break
                first = number % max(1, len(order))
                for key in order[first:] + order[:first]:
                    runner, runs = runners[key]
                    turns[key].append(self._take_turn(runner, inputs, runs))
        finally:
            for runner, _ in runners.values():
                runner.close()

    def probe_other_batches(self) -> None:
        """Try `PROBED_BATCHES`, each engine by itself; what takes long is passed over in silence."""
        for contender in self.contenders:
            if contender.engine.startswith("torch") or not any(contender.key in turns for turns in self.turns.values()):
                continue
            for batch in PROBED_BATCHES:
                if self._is_over() or batch in self.turns or self._predict_run_s(contender, batch) > MAX_PROBE_S:
                    continue
                runner = self._open(contender, batch)
                if runner is None:
                    continue
                try:
                    inputs = self._inputs(batch)
                    turn = self._take_turn(runner, inputs, self._count_runs(self._warm_up(runner, inputs)))
                    self.probes.setdefault(contender.key, {})[batch] = turn
                except DimError as error:
                    self._skip(contender, batch, str(error))
                finally:
                    runner.close()

    def results(self) -> Iterator[Result]:
        """Yield one row per contender and batch size; of the probed sizes only the best, if it is best of all.

        What was opened but had no turn yet has the figures of its warm-up.
        """
        for contender in self.contenders:
            key = contender.key
            rows: dict[int, tuple[Turn, int]] = {}
            for batch, warm_ups in self.warm_ups.items():
                if key in warm_ups:
                    turns = self.turns.get(batch, {}).get(key, [])
                    rows[batch] = _median(turns or [warm_ups[key]]), len(turns)
            if not rows:
                continue
            rows |= {batch: (turn, 1) for batch, turn in self.probes.get(key, {}).items()}
            best = max(rows, key=lambda batch: (rows[batch][1] > 0, rows[batch][0].images_per_s))
            for batch in sorted(rows):
                if batch not in self.warm_ups and batch != best:
                    continue
                turn, count = rows[batch]
                yield Result(
                    engine=contender.engine,
                    precision=contender.precision,
                    device=contender.device,
                    batch=batch,
                    images_per_s=turn.images_per_s,
                    latency_ms=turn.latency_s * 1000,
                    turns=count,
                    best=batch == best,
                )

    def ratios(self) -> Iterator[Ratio]:
        """Yield every engine against every torch contender, and against ONNX Runtime fp32, on its own device."""
        for batch, turns in self.turns.items():
            for key in turns:
                for other in turns:
                    reference = other[0].startswith("torch") or other[:2] in (
                        ("onnxruntime-cpu", "fp32"),
                        ("onnxruntime-cuda", "fp32"),
                    )
                    if key == other or key[2] != other[2] or not reference or key[0].startswith("torch"):
                        continue
                    rounds = zip(turns[key], turns[other], strict=False)  # an interruption leaves a round half done
                    pairs = [ours.images_per_s / theirs.images_per_s for ours, theirs in rounds]
                    if not pairs:
                        continue
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

    def _open(self, contender: Contender, batch: int, spare_s: float = 0.0) -> Runner | None:
        """Open a contender unless it cannot run, or the time limit leaves less than it takes and `spare_s`."""
        if any(_key_of(row) == contender.key and row.batch is None for row in self.not_run):
            return None
        if self._is_over(contender.open_s + spare_s):
            self._skip(contender, batch, f"the time limit of {self._limit_s:g} s left no time for it")
            return None
        expected_s = self._predict_run_s(contender, batch)
        if expected_s > MAX_PREDICTED_RUN_S:
            self._skip(contender, batch, f"one run would take about {expected_s:.0f} s")
            return None
        try:
            return contender.open(batch)
        except DimError as error:
            # Before anything of it has run, the reason is the contender's; later it is the batch's.
            self._skip(contender, batch if self._known_turns(contender.key) else None, str(error))
            return None

    def _is_over(self, next_s: float = 0.0) -> bool:
        """Whether the time limit does not leave so many seconds; until something was measured there is none."""
        if self._limit_s is None or not any(self.warm_ups.values()):
            return False
        return self._clock() - self._began + next_s > self._limit_s

    def _predict_run_s(self, contender: Contender, batch: int) -> float:
        """Seconds of one run at the speed of the batches that were measured; 0 where none was."""
        return batch / max((turn.images_per_s for turn in self._known_turns(contender.key)), default=float("inf"))

    def _known_turns(self, key: ContenderKey) -> list[Turn]:
        return [turn for turns in self.turns.values() for turn in turns.get(key, [])]

    def _skip(self, contender: Contender, batch: int | None, reason: str) -> None:
        engine, precision, device = contender.key
        self.not_run.append(NotRun(engine=engine, precision=precision, device=device, batch=batch, reason=reason))

    def _inputs(self, batch: int) -> Batch:
        rng = np.random.default_rng(batch)
        latents = rng.standard_normal((batch, self._manifest.latent_dim)).astype(np.float32)
        return latents, np.arange(batch, dtype=np.int64) % self._manifest.num_classes

    def _warm_up(self, runner: Runner, inputs: Batch) -> Turn:
        """Run three times, and return the fastest.

        Raises:
            EngineError: one run takes longer than there is patience for.
        """
        seconds = []
        for _ in range(3):
            seconds.append(self._time(runner, [inputs]))
            if len(seconds) == 2 and min(seconds) > MAX_RUN_S:
                raise EngineError(f"one run takes {min(seconds):.0f} s")
        fastest_s = max(min(seconds), 1e-6)
        return Turn(len(inputs[1]) / fastest_s, fastest_s)

    def _count_runs(self, warm_up: Turn) -> int:
        """Return how many runs fill a turn."""
        return max(1, round(self._turn_s / warm_up.latency_s))

    def _take_turn(self, runner: Runner, inputs: Batch, runs: int) -> Turn:
        throughput_s = self._time(runner, [inputs] * runs)
        if runs == 1:
            return Turn(len(inputs[1]) / throughput_s, throughput_s)
        singles = [self._time(runner, [inputs]) for _ in range(min(runs, MAX_SINGLE_RUNS))]
        return Turn(runs * len(inputs[1]) / throughput_s, statistics.median(singles))

    def _time(self, runner: Runner, batches: Sequence[Batch]) -> float:
        """Draw batches, and return the seconds that it took."""
        start = self._clock()
        for _ in runner.run_ahead(batches):
            pass
        return self._clock() - start


def _median(turns: Sequence[Turn]) -> Turn:
    return Turn(
        statistics.median(turn.images_per_s for turn in turns), statistics.median(turn.latency_s for turn in turns)
    )


def _runs_of_turn(runs: int) -> int:
    """Return all runs of a turn: those in a row, and those one by one."""
    return runs if runs == 1 else runs + min(runs, MAX_SINGLE_RUNS)


def _key_of(row: NotRun) -> ContenderKey:
    return (row.engine, row.precision, row.device)
