"""The answers of the gallery's server: facts, pictures, and writing a set."""

import shlex
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.locate import list_names
from dim.runtime.errors import BadValueError
from dim.runtime.gallery.pictures import encode_sheet
from dim.runtime.gallery.wish import Wish, read_whole, read_wish
from dim.runtime.inspection.accuracy_summary import summarise_accuracy
from dim.runtime.sampling.latents import MAX_INDEX
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest

MAX_STEPS = 64
"""Images from one sample to another."""
NEIGHBOURS = 6
_MAX_REAL = 200
_MAX_NAMES = 2000


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A real image near a generated one."""

    image: NDArray[np.uint8]
    """uint8 [H, W, C]."""
    label: int
    distance: float
    """Root of the mean squared difference of pixels, in levels of 255."""


class RealImages(Protocol):
    """The source's training images, which a caller may have beside the bundle; `dim.gallery` has them."""

    name: str

    def first(self, label: int, count: int) -> NDArray[np.uint8]:
        """Return the first images of a class, uint8 [at most count, H, W, C]."""

    def nearest(self, image: NDArray[np.uint8], count: int) -> list[Neighbour]:
        """Return the images nearest to one, uint8 [H, W, C], nearest first."""


class Answers:
    """Answers the questions of a page; threads may ask at once.

    Args:
        bundle: open; the caller closes it.
        real: the source's training images, or None.
        folder: where sets are saved.
    """

    def __init__(self, bundle: Bundle, real: RealImages | None, folder: Path) -> None:
        self._bundle, self._real, self._folder = bundle, real, folder
        self._saving = threading.Lock()

    def facts(self) -> dict[str, Any]:
        """What the page says about the bundle; all of it text and numbers."""
        manifest = self._bundle.manifest
        source = manifest.source
        return {
            "name": manifest.name,
            "classes": manifest.classes[:_MAX_NAMES],
            "num_classes": manifest.num_classes,
            "image": {"height": manifest.height, "width": manifest.width, "channels": manifest.channels},
            "latent_std": manifest.latent_std,
            "fixed_latents": self._bundle.count_fixed_latents(),
            "size_bytes": sum(file.size_bytes for file in manifest.files.values()),
            "files": {path: file.size_bytes for path, file in sorted(manifest.files.items())},
            "licence": manifest.licence,
            "source": {"name": source.name, "images": sum(source.class_counts), "licence": source.licence},
            "content_id": manifest.content_id,
            "accuracy": [asdict(line) for line in summarise_accuracy(manifest.accuracy)],
            "real": None if self._real is None else self._real.name,
            "formats": FORMATS,
            "folder": str(self._folder),
        }

    def images(self, query: Mapping[str, str]) -> bytes:
        """A sheet of `count` images of each class in `labels`, class by class, as PNG."""
        wish = read_wish(query, self._bundle.manifest)
        labels = np.repeat(np.array(wish.labels, np.int64), wish.count)
        indices = np.tile(np.arange(wish.start, wish.start + wish.count), len(wish.labels))
        return encode_sheet(self._bundle.render(self._latents(wish, labels, indices), labels))

    def between(self, query: Mapping[str, str]) -> bytes:
        """A sheet of images from index `start` of a class to its index `end`, `steps` of them, as PNG."""
        wish = read_wish(query, self._bundle.manifest)
        end = read_whole("end", query.get("end", ""), MAX_INDEX)
        steps = read_whole("steps", query.get("steps", ""), MAX_STEPS, least=2)
        labels = np.full(steps, wish.labels[0], np.int64)
        ends = self._latents(wish, labels[:2], np.array([wish.start, end]))
        path = follow_arc(ends[0], ends[1], np.linspace(0.0, 1.0, steps))
        return encode_sheet(self._bundle.render(path, labels))

    def real(self, query: Mapping[str, str]) -> bytes:
        """A sheet of the first `count` real images of the class in `labels`, as PNG."""
        wish = read_wish(query, self._bundle.manifest)
        return encode_sheet(self._require_real().first(wish.labels[0], min(wish.count, _MAX_REAL)))

    def nearest(self, query: Mapping[str, str]) -> tuple[list[Neighbour], bytes]:
        """The real images nearest to index `start` of the class in `labels`, and a sheet of them."""
        wish, real = read_wish(query, self._bundle.manifest), self._require_real()
        labels = np.array(wish.labels[:1], np.int64)
        (image,) = self._bundle.render(self._latents(wish, labels, np.array([wish.start])), labels)
        found = real.nearest(image, NEIGHBOURS)
        return found, encode_sheet(np.stack([neighbour.image for neighbour in found]))

    def command(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The `dim generate` that writes what is seen, and how many images that is."""
        wish = read_wish(query, self._bundle.manifest, for_set=True)
        return {"command": self._write_command(wish, query), "images": wish.count * len(wish.labels)}

    def save(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Write what is seen as a set.

        Raises:
            BadValueError: the folder is none below the one where the gallery was started, the latent std is not the
                bundle's own, or as `dim.runtime.sets.generate.generate`.
            OutputError, EngineError: as `generate`.
        """
        manifest = self._bundle.manifest
        wish = read_wish(query, manifest, for_set=True)
        if wish.std != manifest.latent_std:
            raise BadValueError(
                f"A set is drawn with the bundle's own latent std, {manifest.latent_std:g}, and the slider is at "
                f"{wish.std:g}: set it back to save what is seen."
            )
        out = self._find_place(query.get("out", ""))
        request = SetRequest(
            ipc=wish.count,
            classes=None if len(wish.labels) == manifest.num_classes else wish.labels,
            start=wish.start,
            seed=wish.seed,
            format=query.get("format", FORMATS[0]),
        )
        options = self._bundle.engine_options
        with self._saving, Bundle(self._bundle.path, options, fixed_latents=wish.fixed) as bundle:
            summary = generate(bundle, request, out, progress=False)
        return {"out": str(out), "images": summary.images, "command": self._write_command(wish, query)}

    def _latents(self, wish: Wish, labels: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Latents of samples; another latent std than the bundle's stretches those that are drawn."""
        use = "fixed" if wish.fixed else "stream"
        latents = self._bundle.latents(labels, indices, wish.seed, use)
        stretch = wish.std / self._bundle.manifest.latent_std
        if stretch != 1.0:
            latents[indices >= (self._bundle.count_fixed_latents() if wish.fixed else 0)] *= np.float32(stretch)
        return latents

    def _require_real(self) -> RealImages:
        if self._real is None:
            raise BadValueError("There are no real images here: start the gallery with --data.")
        return self._real

    def _find_place(self, name: str) -> Path:
        """A folder below the one where the gallery was started; a page may not write elsewhere."""
        if not name.strip():
            raise BadValueError(f"The set has no folder yet: name one below {self._folder}.")
        possible = name.isprintable() and "://" not in name
        path = (self._folder / name.strip()).resolve() if possible else Path("/")
        if not possible or not path.is_relative_to(self._folder.resolve()):
            raise BadValueError(f"The folder {name[:200]!r} does not lie below {self._folder}: name one that does.")
        if path == self._folder.resolve():
            raise BadValueError(f"A set needs a folder of its own below {self._folder}.")
        return path

    def _write_command(self, wish: Wish, query: Mapping[str, str]) -> str:
        bundle, manifest = self._bundle, self._bundle.manifest
        named = next((name for name, path in list_names().items() if path == bundle.path), str(bundle.path))
        words = ["dim", "generate", "--bundle", named, "--ipc", str(wish.count)]
        if len(wish.labels) < manifest.num_classes:
            words += [word for label in wish.labels for word in ("--class", manifest.classes[label])]
        words += ["--seed", str(wish.seed)] if wish.seed else []
        words += ["--start", str(wish.start)] if wish.start else []
        words += [] if wish.fixed or not bundle.count_fixed_latents() else ["--no-fixed-latents"]
        format = query.get("format", FORMATS[0])
        words += ["--format", format] if format != FORMATS[0] else []
        return shlex.join([*words, "--out", query.get("out", "").strip() or "data"])


def follow_arc(
    first: NDArray[np.float32], last: NDArray[np.float32], places: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Go from one latent to another on an arc, on which points are as long as samples are.

    Args:
        first, last: float32 [Z].
        places: [N], 0 for the first, 1 for the last.

    Returns:
        float32 [N, Z]; a straight line where the two point the same way.

    Source: Shoemake 1985, spherical linear interpolation.
    """
    a, b = first.astype(np.float64), last.astype(np.float64)
    cosine = float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    t = places[:, None]
    if np.sin(angle) < 1e-6:
        path = (1 - t) * a + t * b
    else:
        path = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    path[places == 0], path[places == 1] = a, b
    return path.astype(np.float32)
