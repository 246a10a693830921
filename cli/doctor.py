"""`dim doctor`: which engines and devices really work here, what is missing, and the line that mends it."""

from pathlib import Path
from typing import TYPE_CHECKING

from dim.cli.options import JsonOption
from dim.cli.terminal import print_json, print_line, print_table, say

if TYPE_CHECKING:
    from dim.data.images.decoded import Entry
    from dim.runtime.inspection.doctor import DoctorReport, EngineState


def doctor(as_json: JsonOption = False) -> None:
    """Show which engines and devices really work here, and what the cache of decoded sets holds.

    Every engine draws from a tiny bundle with a known answer; one that does not work is shown with what was found, what
    is needed, and the line that mends it.

    Example:  [bold]dim doctor[/bold]
    """
    from dim.data.images.decoded import decoded_folder, limit_bytes, list_entries
    from dim.runtime.inspection.doctor import examine_machine

    report = examine_machine(say=say)
    sets = list_entries()
    if as_json:
        cache = {"folder": decoded_folder(), "limit_bytes": limit_bytes(), "sets": [vars(entry) for entry in sets]}
        print_json(report.to_dict() | {"decoded_sets": cache})
        return
    _print_machine(report)
    rows = [(state.engine, "works" if state.works else "does not work", state.reason) for state in report.engines]
    print_table("", ("engine", "", "why"), rows)
    for state in report.engines:
        if not state.works:
            _print_state(state)
    for problem, fix in report.problems:
        print_line(f"Problem: {problem}.")
        print_line(f"  mend it:  {fix}")
    _print_decoded(sets, decoded_folder(), limit_bytes())


def _print_decoded(sets: "list[Entry]", folder: Path, limit: int) -> None:
    unfinished = sum(not entry.finished for entry in sets)
    print_line(
        f"Decoded sets: {len(sets)}{f' ({unfinished} unfinished)' if unfinished else ''} in {folder}, "
        f"{sum(entry.num_bytes for entry in sets) / 1e9:.2f} of at most {limit / 1e9:g} GB ($DIM_DECODED_GB); those "
        "not used for longest go first, and any may be deleted."
    )


def _print_machine(report: "DoctorReport") -> None:
    driver = report.driver
    print_line(f"dim {report.dim}, Python {report.python}, {report.machine}, {report.cores} cores")
    print_line(f"Precision that pays on this processor: {report.fast_precision}")
    print_line(f"NVIDIA driver: {driver.version if driver.problem is None else driver.problem}")
    installed = [f"{name} {version}" for name, version in report.packages.items() if version is not None]
    print_line(f"Packages: {', '.join(installed)}")
    print_line(f"Recommended engine: {report.recommended or 'none works, see below'}")


def _print_state(state: "EngineState") -> None:
    print_line(f"{state.engine}")
    for name, needed in state.needed.items():
        print_line(f"  {name + ':':<20} {state.found.get(name) or 'missing'}, needed: {needed}")
    if state.fix:
        print_line(f"  mend it:  {state.fix}")
