"""Options that several commands share, spelled and explained once."""

from collections.abc import Callable
from typing import Annotated

import typer

from dim.runtime.engines import names as engines


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Return what a shell asks for the words that complete an option's value."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


ENGINE_PANEL, OUTPUT_PANEL = "Engine", "Output"
ENGINES = tuple(name for name in engines.ENGINES if name != "fake")
"""The engines that draw in earnest."""

BundleOption = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        help="The bundle, a folder or a URL; else $DIM_BUNDLE, the newest *.dim here or under runs/, or the one that "
        "comes with dim.",
    ),
]
Sha256Option = Annotated[
    str | None,
    typer.Option("--sha256", metavar="HASH", help="The manifest_sha256 that the bundle must have; pins a download."),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        help="auto, or a name that dim doctor lists.",
        rich_help_panel=ENGINE_PANEL,
        autocompletion=one_of("auto", *ENGINES),
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu or gpu; gpu fails where there is none.",
        rich_help_panel=ENGINE_PANEL,
        autocompletion=one_of("auto", "cpu", "gpu"),
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32 (the default), fp16 or int8.",
        rich_help_panel=ENGINE_PANEL,
        autocompletion=one_of("fp32", "fp16", "int8"),
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of a CPU engine; else one per core.", rich_help_panel=ENGINE_PANEL),
]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="sha256:HASH",
        help="Load this compiled engine though it was built elsewhere; may be repeated.",
        rich_help_panel=ENGINE_PANEL,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT_PANEL)
]
