"""The engines' part of lab/all-results.md, from the JSON of benchmarks/engines.py and of lab/gpu_run.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = """## Engines

Images per second through one call, and the time of a call from latents to pixels in host memory; \\* marks an engine's
best batch. Ratios are medians over neighbours in time, with their range, at batch 256; "load" counts the runnable
processes in the minute before.
"""


def engines_section(cpu: Mapping[str, Mapping[str, Any]], gpu: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write the section.

    Args:
        cpu: by file stem, the reports of `benchmarks/engines.py`.
        gpu: by file stem, the reports of `lab/gpu_run.py`.

    Returns:
        lines of Markdown.
    """
    lines = [HEAD]
    for stem, report in cpu.items():
        lines += [f"### {report['bundle']}, {_machine(report)}", "", *_speeds(report), *_ratios(report)]
        lines += [f"![images per second over the batch](results/{stem}.png)", ""]
    for stem, checked in gpu.items():
        lines += [
            f"### {checked['gpu']}",
            "",
            f"- {stem}.json: {len(checked['steps'])} steps in {checked['seconds']:.0f} s.",
        ]
        lines += [f"- Failed: {', '.join(checked['failed'])}."] if checked["failed"] else []
        lines.append("")
        for report in benchmarks_of(checked):
            lines += [f"{report['bundle']}, {_machine(report)}:", "", *_speeds(report), *_ratios(report)]
    return lines


def benchmarks_of(checked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The benchmark reports among the steps of a GPU check."""
    found = (step.get("found") for step in checked["steps"])
    return [each for each in found if isinstance(each, dict) and "ratios" in each]


def _machine(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    where = [report["gpu"]] if report["gpu"] else []
    where += [f"{report['machine']}, {report['cores']} cores"]
    load = "" if report.get("load") is None else f", load {report['load']:.2f}"
    return "; ".join([*where, *([versions] if versions else []), f"{report.get('date', 'no date')}{load}"])


def _speeds(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{report['gflop_per_image']:.3g} GFLOP per image.",
        "",
        "| engine | precision | device | batch | images/s | latency ms |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in report["results"]:
        speed = f"{row['images_per_s']:,.0f}" + (" \\*" if row["best"] else "")
        cells = [
            row["engine"],
            row["precision"],
            row["device"],
            f"{row['batch']:,}",
            speed,
            f"{row['latency_ms']:,.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _ratios(report: Mapping[str, Any], batch: int = 256) -> list[str]:
    rows = [each for each in report["ratios"] if each["batch"] == batch]
    lines = []
    if rows:
        lines += ["| engine | against | times as fast | range |", "|---|---|---:|---:|"]
        for each in rows:
            who, against = (
                f"{each[a]} {each[b]}" for a, b in (("engine", "precision"), ("against", "against_precision"))
            )
            lines.append(f"| {who} | {against} | {each['ratio']:.2f} | {each['least']:.2f} to {each['most']:.2f} |")
        lines.append("")
    if claims := [claim for claim in report.get("claims", ()) if claim["found"] is not None]:
        lines += ["| promised | at least | found | |", "|---|---:|---:|---|"]
        for claim in claims:
            verdict = "holds" if claim["holds"] else "missed"
            lines.append(f"| {claim['claim']} | {claim['least']:g} | {claim['found']:.2f} | {verdict} |")
        lines.append("")
    return lines
