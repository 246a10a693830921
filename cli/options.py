"""Options that several commands share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dim.cli.parsing import read_device
from dim.cli.terminal import say
from dim.runtime.engines.names import OFFERED_ENGINES


def complete_from(*words: str) -> Callable[[str], list[str]]:
    """Return what a shell asks for the words that complete an option's value."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


engine_option = partial(typer.Option, rich_help_panel="Engine")
output_option = partial(typer.Option, rich_help_panel="Output")

BundleOption = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        help="The bundle: a path with a slash or .dim, a URL, or the name mnist; else $DIM_BUNDLE, else mnist, which "
        "comes with dim.",
    ),
]
BundleArgument = Annotated[
    str | None, typer.Argument(help="The bundle; else the one that dim generate would use.", metavar="[BUNDLE]")
]
Sha256Option = Annotated[
    str | None,
    typer.Option("--sha256", metavar="HASH", help="The manifest_sha256 that the bundle must have; pins a download."),
]
EngineOption = Annotated[
    str,
    engine_option(
        "--engine",
        help="auto, or a name that dim doctor lists.",
        autocompletion=complete_from("auto", *OFFERED_ENGINES),
    ),
]

DeviceOption = Annotated[
    str,
    engine_option(
        "--device",
        callback=read_device,
        help="auto, cpu or gpu, also called cuda; it fails where there is none.",
        autocompletion=complete_from("auto", "cpu", "gpu"),
    ),
]
PrecisionOption = Annotated[
    str | None,
    engine_option(
        "--precision",
        help="fp32 (the default), bf16, fp16 or int8; dim doctor says which pays.",
        autocompletion=complete_from("fp32", "bf16", "fp16", "int8"),
    ),
]
ThreadsOption = Annotated[
    int | None,
    engine_option("--threads", help="Threads of a CPU engine; else one per core."),
]
TrustOption = Annotated[
    list[str] | None,
    engine_option(
        "--trust",
        metavar="sha256:HASH",
        help="Load this compiled engine though it was built elsewhere; may be repeated.",
    ),
]
JsonOption = Annotated[bool, output_option("--json", help="Print one JSON object on stdout.")]
ReportOption = Annotated[bool, output_option("--report", help="Open report.html in the browser at the end.")]


def open_report(folder: Path) -> None:
    """Open the report in a folder in the browser, or say where it is."""
    from dim.runtime.gallery.browser import open_in_browser
    from dim.runtime.gallery.report import REPORT_NAME

    path = (folder / REPORT_NAME).absolute()
    say(f"Report: {path.as_uri()}")
    open_in_browser(path.as_uri(), say)


def choose_bundle(wanted: str | None, sha256: str | None = None) -> Path:
    """Find the bundle, print which one it is and why, and return its folder.

    Args:
        wanted: what `--bundle` or the argument says; None for the default bundle.
        sha256: the `manifest_sha256` that it must have; None for any.

    Raises:
        BundleError: there is none, or it is not the one that was pinned.
    """
    from dim.runtime.bundle_format.locate import find_bundle

    path, reason = find_bundle(wanted, sha256, say)
    say(f"Bundle: {path}, {reason}.")
    return path
