"""`dim verify`: is this bundle whole, and does it draw what it promises?"""

from dataclasses import asdict
from typing import Annotated

import typer

from dim.cli.options import JsonOption, Sha256Option, ThreadsOption, TrustOption, choose_bundle
from dim.cli.terminal import print_json, print_table


def verify(
    bundle: Annotated[
        str | None, typer.Argument(help="The bundle; else the one that dim generate would use.", metavar="[BUNDLE]")
    ] = None,
    sha256: Sha256Option = None,
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a bundle is whole and draws what it promises.

    Hashes, the graph contract, agreement between its precisions, identical rows, blank images, and the compiled
    engines that this machine can run. Ends with exit code 1 if any check failed.

    Example:  [bold]dim verify runs/digits/digits.dim[/bold]
    """
    from dim.cli.bars import Bars
    from dim.runtime.inspection.verify import verify as check_bundle

    path = choose_bundle(bundle, sha256)
    with Bars() as bars:
        report = check_bundle(
            path, threads=threads, trust=trust or (), progress=lambda row: bars.show("verify", 0, None, row.subject)
        )
    if as_json:
        print_json({"path": path, "ok": report.ok, "rows": [asdict(row) for row in report.rows]})
    else:
        columns = ("", "subject", "check", "found", "allowed")
        rows = [("ok" if row.ok else "FAILED", row.subject, row.check, row.found, row.allowed) for row in report.rows]
        print_table("", columns, rows)
        failed = sum(not row.ok for row in report.rows)
        print(f"{failed} of {len(report.rows)} checks failed." if failed else f"All {len(report.rows)} checks passed.")
    if not report.ok:
        raise typer.Exit(1)
