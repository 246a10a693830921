"""`dim doctor`: which engines and devices work here, and the command to use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dim.cli.options import JsonOption
from dim.cli.terminal import print_json, print_line, print_table, say
from dim.runtime.units import format_count

if TYPE_CHECKING:
    from dim.data.images.decoded import Entry
    from dim.runtime.inspection.doctor import DoctorReport, EngineState


def doctor(
    show_all: Annotated[
        bool,
        typer.Option("--all", help="Every engine and package, what those that do not work need, and the cache."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which engines and devices really work here.

    Every engine draws from a tiny bundle with a known answer. With --all: what was found and what is needed where one
    does not work, the line that fixes it, and what the cache of decoded sets holds.

    Example:  [bold]dim doctor[/bold]
    """
    from dim.data.images.decoded import decoded_folder, limit_bytes, list_entries
    from dim.runtime.inspection.doctor import PLAIN_COMMAND, examine_machine

    report = examine_machine(say=say)
    sets = list_entries()
    if as_json:
        cache = {"folder": decoded_folder(), "limit_bytes": limit_bytes(), "sets": [vars(entry) for entry in sets]}
        print_json(report.to_dict() | {"decoded_sets": cache})
        return
    print_line(f"dim {report.dim}, Python {report.python}, {report.machine}, {format_count(report.cores, 'core')}")
    working = [f"{state.engine} ({state.reason})" for state in report.engines if state.works]
    for number, engine in enumerate(working or ["no engine"]):
        print_line(f"{'Works here:' * (number == 0):<16}{engine}")
    print_line(f"Precision:      {report.fast_precision}")
    for problem, fix in report.problems:
        print_line(f"Problem:        {problem}.")
        print_line(f"  fix:          {fix}")
    plain = report.recommended is None or report.worth_typing == PLAIN_COMMAND
    print_line(f"{'To draw:' if plain else 'To draw faster:':<16}{report.worth_typing}")
    if show_all:
        _print_all(report)
        _print_decoded(sets, decoded_folder(), limit_bytes())
    else:
        print_line("More:           dim doctor --all")


def _print_all(report: "DoctorReport") -> None:
    driver = report.driver
    print_line()
    print_line(f"NVIDIA driver: {driver.version if driver.problem is None else driver.problem}")
    installed = [f"{name} {version}" for name, version in report.packages.items() if version is not None]
    print_line(f"Packages: {', '.join(installed)}")
    rows = [(state.engine, "works" if state.works else "does not work", state.reason) for state in report.engines]
    print_table("", ("engine", "", "why"), rows)
    for state in report.engines:
        if not state.works:
            _print_state(state)


def _print_decoded(sets: "list[Entry]", folder: Path, limit: int) -> None:
    unfinished = sum(not entry.finished for entry in sets)
    print_line(
        f"Decoded sets: {len(sets)}{f' ({unfinished} unfinished)' if unfinished else ''} in {folder}, "
        f"{sum(entry.num_bytes for entry in sets) / 1e9:.2f} of at most {limit / 1e9:g} GB ($DIM_DECODED_GB); those "
        "not used for longest go first, and any may be deleted."
    )


def _print_state(state: "EngineState") -> None:
    print_line(f"{state.engine}")
    for name, needed in state.needed.items():
        print_line(f"  {name + ':':<20} {state.found.get(name) or 'missing'}, needed: {needed}")
    if state.fix:
        print_line(f"  fix:  {state.fix}")
