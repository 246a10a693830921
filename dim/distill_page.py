"""Two parts of the docs, from the JSON of bench/distill.py and bench/ablation.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NOT_RUN = "not run"
MODES = ("fixed", "stream")
ABLATION_MARKS = ("<!-- ablation: written by scripts/results.py -->", "<!-- end of ablation -->")


def ablation_table(report: Mapping[str, Any]) -> list[str]:
    """Write the table of an ablation.

    Args:
        report: `results.json` of `bench/ablation.py`.

    Returns:
        lines of Markdown: means over generators, with the deviation between them where there are several.
    """
    real = {mode: statistics.fmean(report["real"][mode]) for mode in MODES}
    lines = [
        "| variant | fixed | stream | generators | seconds |",
        "|---|---:|---:|---:|---:|",
        f"| real images | {real['fixed']:.1f} | {real['stream']:.1f} | | |",
    ]
    for name, words in report["variants"].items():
        rows = [row for row in report["rows"] if row["variant"] == name]
        measured = [row for row in rows if "failed" not in row]
        if rows and not measured:
            lines.append(f"| {words} | refused: {_cell(rows[0]['failed'])} | | {len(rows)} | |")
        elif not rows:
            lines.append(f"| {words} | {NOT_RUN} | {NOT_RUN} | | |")
        else:
            means = [_mean([statistics.fmean(row[mode]) for row in measured]) for mode in MODES]
            seconds = statistics.fmean(row["seconds"] for row in measured)
            number = str(len(measured)) + (f" of {len(rows)}" if len(measured) < len(rows) else "")
            lines.append(f"| {words} | {means[0]} | {means[1]} | {number} | {seconds:.0f} |")
    return lines


def ablation_text(report: Mapping[str, Any]) -> list[str]:
    """Write the table with what it was measured on."""
    student, config = report["student"], ", ".join(f"`{k}={v}`" for k, v in report["changed"].items())
    return [
        f"{report['data']} at {report['image_px']} pixels; preset `{report['preset']}` with {config}. Test accuracy in "
        f"percent of ConvNet-3 of width {student['width']} after {student['epochs']} epochs of {student['ipc']} images "
        f"per class, {len(report['real']['fixed'])} students for every generator. Seconds: what distilling took. "
        f"{report['machine']}, {report['threads']} thread, torch {report['torch']}, {report['date']}.",
        "",
        *ablation_table(report),
    ]


def distill_section(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write how fast distilling is.

    Args:
        reports: by file stem, the reports of `bench/distill.py`.
    """
    lines = ["## Speed of distilling", ""]
    lines += [
        "Ours against the published recipe at equal network sizes, in one interleaved run of `bench/distill.py`: time "
        "of the recipe's step divided by that of ours, the preparation of the pool included; medians over rounds, with "
        "their range.",
        "",
    ]
    if not reports:
        lines += [f"{NOT_RUN.capitalize()}. `python bench/distill.py --out docs/results/distill-cpu.json`", ""]
    for stem, report in reports.items():
        clock = report["clock"]
        lines += [
            f"{stem}.json: networks of `{report['preset']}`, {report['image_px']}x{report['image_px']}x"
            f"{report['channels']}, batch {report['batch']}, {report['rounds']} rounds; {report['machine']}, "
            f"{report['threads']} thread(s), load {report['load']:.1f}, torch {report['torch']}; "
            f"{'processor' if clock == 'cpu' else 'wall'} time.",
            "",
            "| stage | ours | recipe | times as fast | range | promised |",
            "|---|---|---|---:|---:|---|",
        ]
        promised = {(c["what"], c["ours"], c["recipe"]): c for c in report["claims"]}
        for row in report["ratios"]:
            claim = promised.get((row["what"], row["ours"], row["recipe"]))
            verdict = f"at least {claim['least']:g}: {'holds' if claim['holds'] else 'missed'}" if claim else ""
            lines.append(
                f"| {row['what']} | {row['ours']} | {row['recipe']} | {row[clock]:.2f} "
                f"| {row[f'{clock}_least']:.2f} to {row[f'{clock}_most']:.2f} | {verdict} |"
            )
        lines.append("")
    if not any(report["clock"] == "wall" for report in reports.values()):
        lines += [f"On a GPU: {NOT_RUN}.", ""]
    return lines


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
