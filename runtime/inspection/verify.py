"""`dim verify`: check a bundle's hashes, graphs, images and, where they run, compiled engines; or a set's hashes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.accepted_file import MAX_ACCEPTED_BYTES, read_accepted
from dim.runtime.bundle_format.files import check_file_hash, list_unlisted_files, load_manifest, read_checked_file
from dim.runtime.bundle_format.fixed_latents import MAX_LATENTS_BYTES, read_fixed_latents
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_contract, check_graph, teacher_contract
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.bundle_format.names import ACCEPTED, FIXED_LATENTS, TEACHER_ONNX
from dim.runtime.choose_engine import open_engine
from dim.runtime.cores import find_bf16_instructions
from dim.runtime.engines import image_checks
from dim.runtime.engines.base import Engine, EngineOptions, parse_pins
from dim.runtime.engines.draw_in_parts import choose_rows_per_run
from dim.runtime.engines.onnx_session import open_cpu_session, run_in_pieces
from dim.runtime.errors import BundleError, DeviceError, EngineError, GraphError, MissingExtraError
from dim.runtime.gpu.driver import Driver, find_driver
from dim.runtime.progress.show import Progress, ProgressOption, show_progress
from dim.runtime.sampling.latents import draw_latents, order_slice
from dim.runtime.sets.verify_set import AddRow, is_set, verify_set
from dim.runtime.trt.build import reason_engine_cannot_run
from dim.runtime.trt.check_engine import Samples, check_engine, draw_samples
from dim.runtime.trt.library import load_library
from dim.runtime.trt.store import EngineFile, find_onnx_sha256, list_bundle_engines
from dim.runtime.trt.trust import reason_not_trusted
from dim.runtime.units import format_count

BATCHES = (1, 16, 64)
"""Rows that one run is asked for, besides as many as `dim generate` asks for at a time."""
_ONE_BY_ONE = 8
_MAX_CLASSES, _IMAGES = 1024, 800
"""Most classes that are checked, and images drawn of all of them together."""
_MAX_BYTES = 2**28
"""Most memory of the images that one precision draws, unless a largest batch needs more."""
_SEED = 20_231


@dataclass(frozen=True, kw_only=True)
class VerifyRow:
    """One thing that was checked."""

    subject: str
    """The file, or the class."""
    check: str
    """What was checked."""
    found: str
    """What came out, in words."""
    allowed: str
    """What may come out; empty where it goes without saying."""
    ok: bool
    """Whether it passed."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Everything that was checked."""

    path: Path | str
    """The bundle's folder; or a set's, or its URL."""
    manifest: Manifest | None
    """The bundle's; None for a set."""
    rows: tuple[VerifyRow, ...] = field(repr=False)
    """Every check, in the order in which it was made."""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(row.ok for row in self.rows)


def verify(
    bundle_path: str | Path,
    *,
    threads: int | None = None,
    trust: Sequence[str] = (),
    progress: ProgressOption = None,
) -> VerifyReport:
    """Check every file of a bundle and compare what its precisions draw, on ONNX Runtime's CPU provider and OpenVINO.

    Compiled engines are run, too, where this machine can run them and may load them. Of a training set every file is
    hashed again.

    Args:
        bundle_path: the bundle's folder; or a set's, or its URL.
        threads: CPU threads; None for every core this process may use.
        trust: "sha256:..." of engines that may be loaded although somebody else built them.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. Counts the checks that were made.

    Returns:
        a report; a check that fails is a row, not an error.

    Raises:
        BundleError: there is no bundle, or its manifest is malformed, altered or too new.
        OutputError: the set's `dataset.json` is malformed, or its place cannot be read.
        MissingExtraError: onnxruntime or onnx is not installed.
    """
    if is_set(bundle_path):
        with show_progress(progress) as report:
            rows = _Rows(report)
            verify_set(bundle_path, rows.add)
        return VerifyReport(path=bundle_path, manifest=None, rows=tuple(rows.rows))
    with show_progress(progress) as report:
        checks = _Checks(Path(bundle_path), threads, report)
        if checks.check_files() and checks.check_graphs():
            checks.check_precisions()
            verify_engines(checks.path, checks.manifest, checks.add, trust=trust)
    return VerifyReport(path=checks.path, manifest=checks.manifest, rows=tuple(checks.rows))


class _Rows:
    """The rows so far, each reported as it comes."""

    def __init__(self, progress: Progress) -> None:
        self.rows: list[VerifyRow] = []
        self._progress = progress

    def add(self, subject: str, check: str, ok: bool, found: str, allowed: str = "") -> None:
        row = VerifyRow(subject=subject, check=check, found=found, allowed=allowed, ok=ok)
        self.rows.append(row)
        self._progress("verifying", len(self.rows), None, f"{subject}: {check}")


class _Checks(_Rows):
    """A bundle being checked, and the rows so far."""

    def __init__(self, path: Path, threads: int | None, progress: Progress) -> None:
        super().__init__(progress)
        self.path = path
        self.manifest = load_manifest(path)
        self._threads = threads

    def attempt(self, subject: str, check: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except (BundleError, GraphError, EngineError) as error:
            self.add(subject, check, False, str(error))
            return False
        self.add(subject, check, True, "as it must be")
        return True

    def read(self, name: str, max_bytes: int = MAX_ONNX_BYTES) -> bytes:
        return read_checked_file(self.path, self.manifest, name, max_bytes=max_bytes)

    def check_files(self) -> bool:
        """Hash every file; say what lies there unlisted."""
        names = sorted(self.manifest.files)
        whole = [
            self.attempt(name, "hash", lambda name=name: check_file_hash(self.path, self.manifest, name))  # type: ignore[misc]
            for name in names
        ]
        for name in list_unlisted_files(self.path, self.manifest):
            self.add(name, "listed", True, "not in the manifest", "ignored")
        return all(whole)

    def check_graphs(self) -> bool:
        """Check the contract of every ONNX file and of the optimised latents."""
        names = [onnx_name(precision) for precision in self.manifest.precisions]
        kept = [
            self.attempt(name, "graph", lambda name=name: check_graph(self.read(name), self.manifest))  # type: ignore[misc]
            for name in names
        ]
        if TEACHER_ONNX in self.manifest.files:
            contract = teacher_contract(self.manifest)
            kept.append(self.attempt(TEACHER_ONNX, "graph", lambda: check_contract(self.read(TEACHER_ONNX), contract)))
        if FIXED_LATENTS in self.manifest.files:
            kept.append(
                self.attempt(
                    FIXED_LATENTS,
                    "array",
                    lambda: read_fixed_latents(self.read(FIXED_LATENTS, MAX_LATENTS_BYTES), self.manifest),
                )
            )
        if ACCEPTED in self.manifest.files:
            kept.append(self._check_accepted())
        return all(kept)

    def _check_accepted(self) -> bool:
        """Check the accepted candidates, and say how many there are."""
        try:
            accepted = read_accepted(self.read(ACCEPTED, MAX_ACCEPTED_BYTES), self.manifest.num_classes)
        except BundleError as error:
            self.add(ACCEPTED, "candidates", False, str(error))
            return False
        least = int(np.diff(accepted.starts).min())
        found = f"{least:,} or more of {accepted.per_class:,} accepted in every class"
        self.add(ACCEPTED, "candidates", True, found, "1 or more")
        return True

    def check_precisions(self) -> None:
        """Draw the same images in every precision and batch size, and look at them."""
        manifest = self.manifest
        labels, indices = _choose_samples(manifest)
        latents = draw_latents(_SEED, labels, indices, manifest.latent_dim, manifest.latent_std)
        reference: NDArray[np.uint8] | None = None
        for engine_name, precision in _list_cpu_engines(manifest):
            name = f"{engine_name} {precision}" if engine_name == "openvino-cpu" else onnx_name(precision)
            try:
                engine = open_engine(
                    self.path,
                    self.manifest,
                    EngineOptions(engine=engine_name, precision=precision, threads=self._threads),
                )
                images = _draw(engine, latents, labels, BATCHES[-1])
                reference = images if reference is None else reference
                ok, found, allowed = image_checks.compare_precision(precision, images, reference)
                if images is not reference:
                    self.add(name, "against fp32", ok, found, allowed)
                self._check_batches(name, engine, latents, labels, images)
                if engine_name == "onnxruntime-cpu":  # what a file draws, whichever engine runs it
                    self._check_images(name, labels, images)
                engine.close()
            except EngineError as error:
                self.add(name, "runs", False, str(error))
        if TEACHER_ONNX in self.manifest.files and reference is not None:
            self._check_teacher(reference[: BATCHES[-1]])

    def _check_batches(
        self,
        name: str,
        engine: Engine,
        latents: NDArray[np.float32],
        labels: NDArray[np.int64],
        images: NDArray[np.uint8],
    ) -> None:
        """Check that the batch size changes nothing and identical rows give identical images (TensorRT issue 4813)."""
        for batch in BATCHES[:-1]:
            rows = slice(0, _ONE_BY_ONE if batch == 1 else BATCHES[-1])
            again = _draw(engine, latents[rows], labels[rows], batch)
            self._add_levels(name, f"batch {batch}", again, images[rows], image_checks.MAX_FP32_LEVELS)
        if (batch := choose_rows_per_run(self.manifest)) > BATCHES[-1]:
            rows_N = np.arange(batch) % len(labels)
            again = engine.run(latents[rows_N], labels[rows_N])
            self._add_levels(name, f"batch {batch}", again, images[rows_N], image_checks.MAX_FP32_LEVELS)
        for batch in BATCHES[1:]:
            same = engine.run(latents[:1].repeat(batch, axis=0), labels[:1].repeat(batch))
            self._add_levels(name, f"{batch} identical rows", same, same[:1].repeat(batch, axis=0), 0)

    def _add_levels(
        self, name: str, check: str, images: NDArray[np.uint8], others: NDArray[np.uint8], most: int
    ) -> None:
        """Check that two sets of images are at most so many levels apart."""
        levels = image_checks.max_levels(images, others)
        self.add(name, check, levels <= most, format_count(levels, "level"), f"at most {most}" if most else "0")

    def _check_images(self, name: str, labels: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        """Check that images are not blank (a broken network) and that no class has collapsed to one image."""
        blank = image_checks.blank_fraction(images)
        self.add(name, "blank images", blank <= 0.5, f"{blank:.0%}", "at most 50%")
        spreads = {int(label): image_checks.measure_std_levels(images[labels == label]) for label in np.unique(labels)}
        worst = min(spreads, key=spreads.__getitem__)
        self.add(
            name,
            "spread within a class",
            spreads[worst] >= image_checks.MIN_STD_LEVELS,
            f"{spreads[worst]:.1f} levels, least of all in {self.manifest.classes[worst]!r}",
            f"at least {image_checks.MIN_STD_LEVELS:g}",
        )

    def _check_teacher(self, images: NDArray[np.uint8]) -> None:
        model = self.read(TEACHER_ONNX)
        rows = check_contract(model, teacher_contract(self.manifest))
        logits = run_in_pieces(open_cpu_session(model, self._threads), {"images": images}, rows)
        finite = bool(np.isfinite(logits).all())
        self.add(TEACHER_ONNX, "logits", finite, "finite" if finite else "not finite", "finite")


def _list_cpu_engines(manifest: Manifest) -> list[tuple[str, str]]:
    """List engines and precisions: ONNX Runtime over every file, and OpenVINO where it is installed."""
    listed = [("onnxruntime-cpu", precision) for precision in manifest.precisions]
    if find_spec("openvino") is not None:
        listed.append(("openvino-cpu", "fp32"))
        if find_bf16_instructions() is not None:
            listed.append(("openvino-cpu", "bf16"))
    return listed


def _choose_samples(manifest: Manifest) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose labels and indices, int64 [N]: evenly spaced classes, 2 to 8 images of each, at least a largest batch."""
    affordable = max(BATCHES[-1], _MAX_BYTES // (manifest.height * manifest.width * manifest.channels))
    count = min(manifest.num_classes, _MAX_CLASSES, affordable // 2)
    chosen = np.unique(np.linspace(0, manifest.num_classes - 1, count).astype(int))
    per_class = max(2, min(8, _IMAGES // count, affordable // count), -(-BATCHES[-1] // len(chosen)))
    labels, indices = order_slice([per_class] * len(chosen), 0, per_class * len(chosen))
    return chosen[labels].astype(np.int64), indices


def _draw(engine: Engine, latents: NDArray[np.float32], labels: NDArray[np.int64], batch: int) -> NDArray[np.uint8]:
    parts = [
        engine.run(latents[start : start + batch], labels[start : start + batch])
        for start in range(0, len(labels), batch)
    ]
    return np.concatenate(parts)


def verify_engines(
    bundle_path: Path, manifest: Manifest, add: AddRow, *, trust: Sequence[str] = (), driver: Driver | None = None
) -> None:
    """Check every engine of a bundle, and run those that this machine can run and may load.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.
        add: gets one row per check; an engine for other machines is no failure, it is told as not run.
        trust: "sha256:..." of engines that may be loaded although somebody else built them.
        driver: an answer of `find_driver`; None asks anew if there are engines at all.

    Raises:
        BadValueError: a pin of another form.
    """
    pins = parse_pins(trust)
    files, problems = list_bundle_engines(bundle_path, manifest)
    for problem in problems:
        add("engines", "sidecar", False, problem, "")
    samples: Samples | None = None
    for file in files:
        name, sidecar = file.path.name, file.sidecar
        sha256 = find_onnx_sha256(manifest, sidecar.precision)
        if sha256 != sidecar.onnx_sha256:
            add(name, "built from", False, f"hash {sidecar.onnx_sha256[:12]}", f"hash {str(sha256)[:12]}")
            continue
        try:
            plan = file.read(bundle_path, manifest)
        except (BundleError, EngineError) as error:
            add(name, "plan", False, str(error), "")
            continue
        driver = driver or find_driver()
        reason = _reason_not_run(file, driver) or reason_not_trusted(sidecar.engine_sha256, pins)
        if reason is not None:
            add(name, "runs", True, f"not run here: {reason}", "")
            continue
        try:
            samples = samples or draw_samples(bundle_path, manifest)
            for check in check_engine(load_library(sidecar.format), plan, sidecar, manifest, samples, driver):
                add(name, f"batch {check.batch}, {check.check}", check.ok, check.found, check.allowed)
        except (DeviceError, MissingExtraError) as error:
            add(name, "runs", True, f"not run here: {error}", "")
        except EngineError as error:
            add(name, "runs", False, str(error), "")


def _reason_not_run(file: EngineFile, driver: Driver) -> str | None:
    try:
        library = load_library(file.sidecar.format)
    except (EngineError, MissingExtraError) as error:
        return str(error)
    return reason_engine_cannot_run(library, file.sidecar, driver)
