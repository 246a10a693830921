"""`dim verify`: checks that a bundle is complete and draws the right images, or that a set is unchanged."""

from dataclasses import asdict
from typing import Annotated

import typer

from dim.cli.interruption import explain_interruption
from dim.cli.options import JsonOption, Sha256Option, ThreadsOption, TrustOption, choose_bundle
from dim.cli.terminal import print_json, print_line, print_table, say
from dim.runtime.errors import BadValueError
from dim.runtime.units import format_count


def verify(
    bundle: Annotated[
        str | None,
        typer.Argument(
            help="The bundle, else the one that dim generate would use; or the folder of a training set.",
            metavar="[BUNDLE or SET]",
        ),
    ] = None,
    sha256: Sha256Option = None,
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every check, not only those that failed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that a bundle is whole and draws what it promises, or that a training set is as it was written.

    Of a bundle: hashes, inputs and outputs of its files, agreement between its precisions, identical rows, blank
    images, and the compiled engines that this machine can run. Of a set: the hash of every file, and files that are
    not its own. Ends with exit code 1 if any check failed.

    Example:  [bold]dim verify runs/digits/digits.dim[/bold]
    """
    from dim.runtime.inspection.verify import verify as check_bundle

    path = _find_set(bundle, sha256) or choose_bundle(bundle, sha256)
    with explain_interruption("Nothing was changed: the same command checks anew."):
        report = check_bundle(path, threads=threads, trust=trust or (), progress=True)
    if as_json:
        print_json({"path": path, "ok": report.ok, "rows": [asdict(row) for row in report.rows]})
    else:
        failed = [row for row in report.rows if not row.ok]
        if show_all or failed:
            columns = ("", "subject", "check", "found", "allowed")
            shown = report.rows if show_all else failed
            rows = [("ok" if row.ok else "FAILED", row.subject, row.check, row.found, row.allowed) for row in shown]
            print_table("", columns, rows)
        checks = format_count(len(report.rows), "check")
        print_line(f"{len(failed)} of {checks} failed." if failed else f"{checks} passed.")
    if not report.ok:
        raise typer.Exit(1)


def _find_set(named: str | None, sha256: str | None) -> str | None:
    """Return what was named if it is a training set, else None; bundles that come with dim go first."""
    from dim.runtime.bundle_format.locate import list_names
    from dim.runtime.sets.verify_set import is_set

    if named is None or named in list_names() or not is_set(named):
        return None
    if sha256 is not None:
        raise BadValueError("--sha256 pins a bundle, and this is a training set: leave it out.")
    say(f"Training set: {named}")
    return named
