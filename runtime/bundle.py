"""An opened bundle: images drawn by class, whole sets as arrays, streams for training loops.

with open_bundle("mnist") as bundle:
    images = bundle.sample(["3", "7", "7"])                           # uint8 [3, H, W, C]
    X, y = bundle.arrays(ipc=50)                                      # a whole set
    for images, labels in bundle.stream(ipc=10, batch_size=64, epochs=1000):
        ...
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim.runtime.bundle_format.describe import describe_html, describe_line
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.latents import BundleLatents
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import Engine, EngineOptions
from dim.runtime.engines.draw_in_parts import choose_rows_per_run, draw_in_parts
from dim.runtime.engines.shared import SharedEngine
from dim.runtime.errors import BadValueError, BundleError, printable
from dim.runtime.messages import say_to_log
from dim.runtime.sampling.accepted import AcceptedCandidates
from dim.runtime.sampling.counts import resolve_counts
from dim.runtime.sampling.labels import Labels, count_within_classes, find_label, resolve_labels, select_labels
from dim.runtime.sampling.latents import check_row, index_major_order
from dim.runtime.sampling.stream import Stream, StreamPlan


def open_bundle(
    name_or_path: str | Path | None = None,
    *,
    sha256: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    trust: Sequence[str] = (),
    fixed_latents: bool = True,
    say: Callable[[str], None] = say_to_log,
) -> "Bundle":
    """Open a bundle; the engine starts at the first image.

    Args:
        name_or_path: the name of a bundle that comes with the package ("mnist"); the path of a folder, with a slash or
            ending in `.dim`; or a URL (`https://`, `s3://`), fetched into the private cache. None for `$DIM_BUNDLE`,
            else "mnist".
        sha256: the `manifest_sha256` that is expected; None for any bundle.
        engine: "auto", or an engine's name.
        device: "auto", "cpu" or "gpu"; "gpu" fails where there is none.
        precision: "fp32", "fp16", "int8" or "bf16"; "auto" for bf16 where this machine has it; None lets the engine
            choose.
        threads: threads of a CPU engine; None for every core this process may use.
        trust: "sha256:..." of prebuilt engine plans that may be loaded.
        fixed_latents: use the bundle's optimised latents in fixed sets, where it has some.
        say: gets one sentence about each choice; by default they go to the logger `dim`.

    Returns:
        the bundle; a context manager.

    Raises:
        BadValueError: an option that cannot be, as `EngineOptions`.
        BundleError: no bundle there, not the one that was pinned, or it is altered, malformed or too new.
    """
    options = EngineOptions(engine=engine, device=device, precision=precision, threads=threads, trust=trust)
    folder, reason = find_bundle(name_or_path, sha256)
    if name_or_path is None:
        say(f"Bundle: {folder}, {reason}.")
    return Bundle(folder, options, fixed_latents=fixed_latents, say=say)


class Bundle:
    """An opened bundle. Threads may share it; a pickled or forked one opens its own engine in the other process.

    Args:
        path: the bundle's folder.
        options: which engine is wanted; None for the best that works here, in fp32.
        fixed_latents: use the bundle's optimised latents in fixed sets, where it has some.
        say: gets one sentence about each choice.

    Raises:
        BundleError: no bundle there, or it is altered, malformed or too new.
    """

    def __init__(
        self,
        path: str | Path,
        options: EngineOptions | None = None,
        *,
        fixed_latents: bool = True,
        say: Callable[[str], None] = say_to_log,
    ) -> None:
        self.path = Path(path).absolute()
        """The bundle's folder."""
        self.manifest: Manifest = load_manifest(self.path)
        """Everything that `manifest.json` says."""
        self.fixed_latents = fixed_latents
        """Whether optimised latents are used in fixed sets, where the bundle has some."""
        self.engine_options = options or EngineOptions()
        """Which engine is wanted."""
        self._engine = SharedEngine(
            self.path, partial(open_engine, self.path, self.manifest, self.engine_options, say=say)
        )
        self._latents = BundleLatents(self.path, self.manifest, fixed_latents)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return self.manifest.classes

    @property
    def engine(self) -> Engine:
        """The engine, opened on first use.

        Raises:
            BundleError: the bundle was closed.
            EngineError: no engine that was asked for works here.
        """
        return self._engine.get()

    @property
    def opened_engine(self) -> Engine | None:
        """The engine if one was opened, else None."""
        return self._engine.opened

    def draw_with(self, engine: Engine) -> None:
        """Draw with this engine, which the bundle closes, instead of opening one.

        Raises:
            BundleError: the bundle was closed, or draws with another engine already.
        """
        self._engine.put(engine)

    def latents(
        self, labels: Labels, indices: ArrayLike | None = None, seed: int = 0, use: str = "fixed"
    ) -> NDArray[np.float32]:
        """Draw the latents of the given samples.

        Args:
            labels: class names, or int64 [N], 0..K-1.
            indices: int64 [N], 0 to 2**32 - 1; None counts each class from 0.
            seed: 0 to 2**64 - 1.
            use: "fixed" (the bundle's optimised latents where it has some) or "stream".

        Returns:
            float32 [N, Z].

        Raises:
            BadValueError: a label, index, seed or use that cannot be.
        """
        return self._latents.draw(*self._check_samples(labels, indices), seed, use)

    def sample(
        self, labels: Labels, indices: ArrayLike | None = None, seed: int = 0, use: str = "fixed"
    ) -> NDArray[np.uint8]:
        """Draw images: `bundle.sample(["cat", "dog", "dog"])`, or `bundle.sample([0, 1, 1], [0, 0, 1])`.

        Args:
            labels: class names, or int64 [N], 0..K-1; any N.
            indices: int64 [N], the number of each image within its class, 0 to 2**32 - 1; None counts each class from
                0, so that a class named twice gives two images.
            seed: 0 to 2**64 - 1.
            use: "fixed" or "stream", as `latents`.

        Returns:
            uint8 [N, H, W, C]; each row depends on its own label and index alone.

        Raises:
            BadValueError: a label, index, seed or use that cannot be.
            EngineError: the engine cannot be opened or failed.
        """
        labels_N, indices_N = self._check_samples(labels, indices)
        return draw_in_parts(
            self.engine,
            self.manifest,
            labels_N,
            lambda part: self._latents.draw(labels_N[part], indices_N[part], seed, use),
        )

    def render(self, latents: ArrayLike, labels: Labels) -> NDArray[np.uint8]:
        """Draw images of latents that are the caller's own, such as points between two samples.

        Args:
            latents: float32 [N, Z].
            labels: class names, or int64 [N], 0..K-1.

        Returns:
            uint8 [N, H, W, C].

        Raises:
            BadValueError: another shape, latents that are not finite, or no such class.
            EngineError: the engine cannot be opened or failed.
        """
        labels_N, latents_NZ = resolve_labels(labels, self.classes), np.asarray(latents, np.float32)
        if latents_NZ.shape != (len(labels_N), self.manifest.latent_dim) or not np.isfinite(latents_NZ).all():
            raise BadValueError(
                f"The latents have shape {latents_NZ.shape}; they must be finite and of shape "
                f"({len(labels_N)}, {self.manifest.latent_dim}), one row per label."
            )
        return draw_in_parts(self.engine, self.manifest, labels_N, lambda part: latents_NZ[part])

    def draw(
        self, label: str | int, count: int, seed: int = 0, start: int = 0, use: str = "fixed"
    ) -> NDArray[np.uint8]:
        """Draw images of one class: `bundle.draw("cat", 10)`.

        Args:
            label: the class's name or label.
            count: how many, N.
            seed: 0 to 2**64 - 1.
            start: the first index within the class; the images are start..start+N-1.
            use: "fixed" or "stream", as `latents`.

        Returns:
            uint8 [N, H, W, C].

        Raises:
            BadValueError: no such class, or a number out of range.
            EngineError: the engine cannot be opened or failed.
        """
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise BadValueError(f"count is {count!r}; it must be a whole number, 0 or more.")
        labels = np.full(count, find_label(label, self.classes), np.int64)
        return self.sample(labels, np.arange(start, start + count), seed, use)

    def arrays(
        self,
        ipc: int | None = None,
        *,
        ratio: float | None = None,
        total: int | None = None,
        per_class: Mapping[str, int] | Sequence[int] | None = None,
        classes: str | Sequence[str | int] | None = None,
        seed: int = 0,
        start: int = 0,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Draw a whole training set: `X, y = bundle.arrays(ipc=50)`; the order and pixels of `dim generate`.

        Args:
            ipc: images per class.
            ratio: or the size relative to the source set, keeping its balance of classes.
            total: or the number of images, keeping that balance.
            per_class: or images by class name, or one number for each class.
            classes: names or labels of the classes wanted; None for all.
            seed: 0 to 2**64 - 1.
            start: the first index of every class; continues another set of the same seed.

        Returns:
            images uint8 [N, H, W, C] and labels int64 [N], index-major: image 0 of every class, then image 1, ...

        Raises:
            BadValueError: no size or two sizes, no such class, or a number out of range.
            EngineError: the engine cannot be opened or failed.
        """
        counts = resolve_counts(self.manifest, ipc, ratio, total, per_class, classes, start)
        labels, indices = index_major_order(counts)
        return self.sample(labels, indices + start, seed), labels

    def to_datasets(
        self,
        ipc: int | None = None,
        *,
        ratio: float | None = None,
        total: int | None = None,
        per_class: Mapping[str, int] | Sequence[int] | None = None,
        classes: str | Sequence[str | int] | None = None,
        seed: int = 0,
        start: int = 0,
        cache_dir: str | Path | None = None,
    ) -> Any:
        """Draw a training set as a Hugging Face `Dataset`, with the features Image and ClassLabel.

        It is drawn a batch at a time into the cache of the library `datasets`, so memory does not grow with its size,
        and the same call finds it there again.

        Args:
            ipc: images per class; or another size and the rest as in `arrays`.
            ratio: as in `arrays`.
            total: as in `arrays`.
            per_class: as in `arrays`.
            classes: as in `arrays`.
            seed: as in `arrays`.
            start: as in `arrays`.
            cache_dir: where the library keeps the set; None for its own folder.

        Returns:
            a `datasets.Dataset` with the columns `image` and `label`, in the order of `arrays`.

        Raises:
            BadValueError: no size or two sizes, no such class, or a number out of range.
            MissingExtraError: the library is not installed.
            EngineError: the engine cannot be opened or failed.
        """
        from dim.runtime.set_formats.hugging_face import make_dataset

        counts = resolve_counts(self.manifest, ipc, ratio, total, per_class, classes, start)
        engine = self.engine
        identity = f"{engine.name} {engine.version} {engine.device} {engine.precision} {engine.batch}"
        rows = engine.batch or choose_rows_per_run(self.manifest)
        return make_dataset(partial(self.sample, seed=seed), self.classes, counts, start, rows, identity, cache_dir)

    def stream(
        self,
        ipc: int,
        batch_size: int = 64,
        seed: int = 0,
        epochs: int | None = None,
        shard: tuple[int, int] = (0, 1),
        start_epoch: int = 0,
        classes: str | Sequence[str | int] | None = None,
        prefetch: int = 2,
        output: str = "numpy",
    ) -> Stream[Any]:
        """Draw fresh images epoch after epoch, the next batches in a background thread.

        Args:
            ipc: images per class and epoch; epoch e holds indices e*ipc to (e+1)*ipc-1.
            batch_size: images per batch; the last batch of an epoch may be shorter.
            seed: 0 to 2**64 - 1, for the images and the shuffles.
            epochs: how many; None for ever.
            shard: (i, n) takes every n-th image of each shuffled epoch from the i-th, for loader workers and ranks.
            start_epoch: the first epoch, to resume.
            classes: names or labels to draw; None for all.
            prefetch: batches drawn ahead; 0 for none.
            output: "numpy", or "dlpack" for arrays on the engine's own device; a CPU engine's are NumPy arrays, which
                carry DLPack too.

        Returns:
            the batches, images uint8 [B, H, W, C] and labels int64 [B]; `len()` counts them, and every loop begins
            anew.

        Raises:
            BadValueError: an argument is out of range.

        Examples:
            >>> for images, labels in bundle.stream(ipc=10, epochs=100):
            ...     train(images, labels)
        """
        if output not in ("numpy", "dlpack"):
            raise BadValueError(f"There is no output {output!r}; there are numpy and dlpack.")
        plan = StreamPlan(
            labels=self.select(classes),
            ipc=ipc,
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            start_epoch=start_epoch,
            shard=shard,
        )

        return Stream(plan, partial(self._draw, seed=seed, output=output), prefetch)

    def select(self, classes: str | Sequence[str | int] | None) -> tuple[int, ...]:
        """Turn class names or labels into ascending labels; None stands for all.

        Raises:
            BadValueError: unknown, doubled, or none at all.
        """
        return select_labels(classes, self.classes)

    def close(self) -> None:
        """Give back the engine; harmless when called twice."""
        self._engine.close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle {describe_line(self.manifest)}, {printable(str(self.path))}>"

    def _repr_html_(self) -> str:
        """Show the preview and the facts in a notebook."""
        return describe_html(self.path, self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "manifest_sha256": self.manifest.manifest_sha256,
            "options": self.engine_options,
            "fixed_latents": self.fixed_latents,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["options"], fixed_latents=state["fixed_latents"])  # type: ignore[misc]
        if self.manifest.manifest_sha256 != state["manifest_sha256"]:
            raise BundleError(f"{self.path} is no longer the bundle that was opened in the other process.")

    def _draw(self, labels: NDArray[np.int64], indices: NDArray[np.int64], seed: int, output: str) -> Any:
        engine = self.engine
        if output == "dlpack" and hasattr(engine, "run_dlpack"):
            return engine.run_dlpack(self.latents(labels, indices, seed, "stream"), labels)
        return self.sample(labels, indices, seed, "stream")

    def _check_samples(self, labels: Labels, indices: ArrayLike | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        labels_N = resolve_labels(labels, self.classes)
        indices_N = count_within_classes(labels_N) if indices is None else check_row(indices, "indices")
        if len(labels_N) != len(indices_N):
            raise BadValueError(f"There are {len(labels_N)} labels and {len(indices_N)} indices; give one per label.")
        return labels_N, indices_N

    @property
    def accepted_candidates(self) -> AcceptedCandidates | None:
        """The candidates that samples are, in a bundle of sampling version 2; None in one of version 1.

        Raises:
            BundleError: the file was altered or is malformed.
        """
        return self._latents.accepted

    def count_fixed_latents(self) -> int:
        """Count the images of each class whose latents the bundle optimised for fixed sets; 0 where they are not used.

        Raises:
            BundleError: the file was altered or is malformed.
        """
        return self._latents.count_fixed()
