"""`dim inspect`: what a bundle holds, and a picture of what it draws."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim.cli.options import BundleArgument, JsonOption, Sha256Option, choose_bundle
from dim.cli.terminal import is_narrow, print_json, print_line, print_table, say
from dim.runtime.bundle_format.locate import list_names
from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.inspection.accuracy_summary import summarise_accuracy
from dim.runtime.inspection.quality_summary import (
    COPIES_COLUMNS,
    QUALITY_COLUMNS,
    describe_images,
    list_copies,
    list_quality,
)
from dim.runtime.storage.records import to_plain
from dim.runtime.units import format_units, format_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dim.runtime.inspection.inspect import BundleFacts

_LEAST_COLUMNS = 4
_MAX_VALUE_CHARS = 2000
_MAX_ROWS = 2048


def inspect(
    bundle: BundleArgument = None,
    sha256: Sha256Option = None,
    png: Annotated[Path | None, typer.Option(help="Write the preview as a PNG file as well.")] = None,
    no_preview: Annotated[bool, typer.Option("--no-preview", help="Do not draw in the terminal.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Every file, hash and measured row as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds and what it draws.

    One screen: classes, source, size, measured accuracy, and a grid with one row per class where the terminal shows it.

    Example:  [bold]dim inspect runs/digits/digits.dim[/bold]
    """
    from dim.runtime.inspection.inspect import inspect as inspect_bundle
    from dim.runtime.inspection.labelled_grid import draw_labelled_grid
    from dim.runtime.inspection.preview import can_show_pictures, make_grid, render_ansi, write_png

    if png is not None:
        _check_png(png)
    path = choose_bundle(bundle, sha256)
    facts = inspect_bundle(path)
    in_terminal = not as_json and not no_preview and can_show_pictures(sys.stdout)
    images = _draw(path) if png is not None or in_terminal else None
    if png is not None and images is not None:
        try:
            write_png(png, draw_labelled_grid(images, facts.classes[: len(images)]))
        except OSError as error:
            raise OutputError(f"{png} cannot be written: {error.strerror}; name a file elsewhere.") from error
        say(f"Picture: {png}.")
    if as_json:
        print_json(to_plain(facts))
    else:
        _print_facts(facts, pictured=images is not None)
        if show_all:
            _print_all(facts)
    if in_terminal and images is not None:
        letters = shutil.get_terminal_size().columns
        print(render_ansi(make_grid(images[:, : columns_that_fit(letters, images.shape[3])]), max_columns=letters))


def _check_png(png: Path) -> None:
    """Refuse a preview that cannot become a file, before anything is drawn."""
    if png.is_dir():
        raise BadValueError(f"--png got {png}, a folder: name a file, as in  {png / 'preview.png'}")
    if png.exists() and not png.is_file():
        raise BadValueError(f"--png got {png}, which is no plain file: name another.")
    if not png.parent.is_dir():
        found = "is a file" if png.parent.exists() else "does not exist"
        raise BadValueError(f"--png got {png}, but the folder {png.parent} {found}: make it, or name another file.")


def _print_facts(facts: "BundleFacts", *, pictured: bool) -> None:
    """Print what fits on one screen: what it is, how large, how good, how to use it, and how to see it."""
    image, source = facts.image, facts.source
    colours = "grey" if image.channels == 1 else "colour"
    extras = [f"latents for fixed sets of up to {facts.fixed_latents} per class"] if facts.fixed_latents else []
    extras += ["a teacher for soft labels"] if facts.teacher else []
    if facts.candidates:
        share = facts.accepted / (facts.candidates * len(facts.classes))
        extras.append(f"the {share:.0%} of {facts.candidates:,} candidates per class that a classifier was surest of")
    rows = {
        "name": facts.name,
        "classes": _shorten(facts.classes),
        "images": f"{image.height} x {image.width}, {colours}",
        "source": f"{source.name}, {sum(source.class_counts):,} training images",
        "licence": facts.licence,
        "precisions": ", ".join([*facts.precisions, *(["engines compiled"] if facts.engines else [])]),
        "also holds": ", ".join(extras) or "nothing else",
        "size": format_units(facts.size_bytes, "B"),
        "content id": facts.content_id[:16],
    }
    _print_rows(rows)
    lines = summarise_accuracy(facts.accuracy)
    if lines:
        table: list[tuple[str, ...]]
        table = [(line.network, line.mode, str(line.ipc), line.generated, line.real) for line in lines]
        columns = ("network", "mode", "images per class", "generated", "real")
        if is_narrow():
            columns = ("network", "mode", "ipc", "generated", "real")
            table = [(*row[:3], *(accuracy.partition(" ")[0] for accuracy in row[3:])) for row in table]
        print_table("Test accuracy in percent, of networks trained on", columns, table, numbers=columns[2:])
        _print_rows({"trained by": f"recipe {lines[0].recipe}, {lines[0].epochs:,} epochs"})
    _print_rows(describe_images(facts.evaluation))
    _print_rows({"use it": f"dim generate --bundle {shlex.quote(_name(facts.path))} --ipc 50 --out data/"})
    picture = "" if pictured else "; --png grid.png draws a picture"
    _print_rows({"more": f"--all shows files, hashes and all that was measured{picture}"})


def _print_all(facts: "BundleFacts") -> None:
    """Print what one screen leaves out."""
    source = facts.source
    rows = {
        "source licence": source.licence,
        "source note": source.note,
        "latents": f"{facts.latent_dim} per image, standard deviation {facts.latent_std:g}",
        "engines": ", ".join(facts.engines) or "none compiled",
        "distilled with": f"preset {facts.distill_config.get('preset', 'unknown')}, {facts.created_by}",
        "content id": facts.content_id,
        "manifest SHA-256": facts.manifest_sha256,
    }
    print_line()
    _print_rows(rows)
    print_line()
    files = [(file.path, format_units(file.size_bytes, "B"), file.sha256[:16]) for file in facts.files]
    print_table("Files", ("file", "size", "SHA-256 begins"), files, numbers=("size",))
    _print_findings(facts.evaluation)
    for row in facts.accuracy[:_MAX_ROWS]:
        _print_rows({"accuracy": ", ".join(f"{key}={_cell(value)}" for key, value in row.items())})
    if len(facts.accuracy) > _MAX_ROWS:
        print_line(f"{len(facts.accuracy) - _MAX_ROWS:,} more rows are not shown; --json gives all.")


def _print_findings(evaluation: Mapping[str, Any]) -> None:
    """Print what was found about the images themselves, class by class."""
    quality, privacy = (evaluation.get(part) for part in ("quality", "privacy"))
    if isinstance(quality, Mapping):
        rows = list_quality(quality, by_class=True)
        print_table("Quality of the images", QUALITY_COLUMNS, rows, numbers=QUALITY_COLUMNS[1:])
        _print_rows({"compared by": f"{format_whole(quality.get('images'))} images, {quality.get('compared_by', '?')}"})
    if isinstance(privacy, Mapping):
        print_table("Copies of training images", COPIES_COLUMNS, list_copies(privacy), numbers=COPIES_COLUMNS[1:])
        _print_rows({"verdict": str(privacy.get("verdict", "?"))})


def _print_rows(rows: Mapping[str, str]) -> None:
    for key, value in rows.items():
        print_line(f"{key:<17} {value[:_MAX_VALUE_CHARS]}{'...' * (len(value) > _MAX_VALUE_CHARS)}")


def _name(path: str) -> str:
    """The bundle as `--bundle` takes it: the name of the shipped one, else its path."""
    return next((name for name, folder in list_names().items() if str(folder) == path), path)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shorten(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:12])
    return f"{len(names)}: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _draw(path: Path) -> "NDArray[np.uint8]":
    from dim.runtime.bundle import open_bundle
    from dim.runtime.inspection.preview import draw_rows

    with open_bundle(path, say=lambda line: None) as opened:
        return draw_rows(opened)


def columns_that_fit(letters: int, image_px: int) -> int:
    """Return how many images of a row to show, so that at least four do and none shrinks more than it must."""
    for shrunk in range(1, 1000):
        columns = (letters * shrunk - 2) // (image_px + 2)
        if columns >= _LEAST_COLUMNS:
            return columns
    return _LEAST_COLUMNS
