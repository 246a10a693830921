"""`dim view` from Python: a bundle's page, with real images if a source is given."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.gallery.answers import Neighbour
from dim.runtime.gallery.browser import open_in_browser
from dim.runtime.gallery.server import Gallery
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import is_notebook

if TYPE_CHECKING:
    from dim.data.image_set import ImageSet

_ROWS_AT_A_TIME = 8192


class SourceImages:
    """The training images of a dataset: the first of each class, and the nearest to a given one.

    Args:
        data: the dataset that a bundle was distilled from.
    """

    def __init__(self, data: "ImageSet") -> None:
        self.name = data.name
        self._images, self._labels = data.train_images, data.train_labels

    def first(self, label: int, count: int) -> NDArray[np.uint8]:
        """Return the first images of a class, uint8 [at most count, H, W, C]."""
        return self._images[np.flatnonzero(self._labels == label)[:count]]

    def nearest(self, image: NDArray[np.uint8], count: int) -> list[Neighbour]:
        """Return the images whose pixels differ least from one, uint8 [H, W, C]; of any class, nearest first."""
        wanted = image.astype(np.float32).ravel()
        squares = np.empty(len(self._images), np.float32)
        for start in range(0, len(squares), _ROWS_AT_A_TIME):
            rows = self._images[start : start + _ROWS_AT_A_TIME]
            difference = rows.reshape(len(rows), -1).astype(np.float32) - wanted
            squares[start : start + len(rows)] = np.einsum("nd,nd->n", difference, difference)
        order = np.argsort(squares, kind="stable")[:count]
        return [
            Neighbour(
                image=self._images[row],
                label=int(self._labels[row]),
                distance=float(np.sqrt(squares[row] / wanted.size)),
            )
            for row in order
        ]


def view(
    bundle: Bundle | str | Path | None = None,
    data: "ImageSet | None" = None,
    *,
    port: int = 0,
    folder: str | Path | None = None,
    browser: bool | None = None,
    say: Callable[[str], None] = say_to_log,
) -> Gallery:
    """Show a bundle in the browser, or below the cell in a notebook.

    Args:
        bundle: an open bundle, or what `open_bundle` takes; None for the default one. It is closed with the gallery.
        data: the dataset that it was distilled from, for real images and nearest neighbours; None for none.
        port: on 127.0.0.1; 0 for any that is free.
        folder: where sets are saved that the page asks for; None for the current folder.
        browser: open a browser; None opens one where there is a display and no notebook.
        say: gets the address, and a sentence where no browser was found.

    Returns:
        the gallery, which serves until it is closed: `url`, `wait()`, `close()`; a notebook shows it.

    Raises:
        BundleError: no bundle there, or it is altered, malformed or too new.
        BadValueError: the bundle is not of this dataset.
        OutputError: the port cannot be used.

    Example:
        dim.view("mnist", dim.load_data("mnist"))
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, say=say)
    if data is not None:
        from dim.evaluation.subjects import check_fits  # the readers of data would double the time to the first page

        check_fits(opened.path, opened.manifest, data)
    real = None if data is None else SourceImages(data)
    gallery = Gallery(opened, real, port=port, folder=None if folder is None else Path(folder))
    say(f"Gallery: {gallery.url}")
    if browser or (browser is None and not is_notebook()):
        open_in_browser(gallery.url, say)
    return gallery
