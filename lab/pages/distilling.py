"""Parts of the docs, from the JSON of lab/distill_speed.py, lab/processes.py and lab/ablation.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MODES = ("fixed", "stream")
SPLITS = {
    "test": "the test split",
    "hold-out": "hold-out images cut from the training split, which no generator and no student saw",
}
"""On what an ablation was measured; reports without a word about it are older, and used the test split."""
ABLATION_MARKS = ("<!-- ablation: written by python -m lab.pages.results -->", "<!-- end of ablation -->")


def ablation_table(report: Mapping[str, Any], *, with_real: bool = True) -> list[str]:
    """Write the table of an ablation.

    Args:
        report: `results.json` of `lab/ablation.py`.
        with_real: begin with the row of students of real images.

    Returns:
        lines of Markdown: means over generators, with the deviation between them where there are several.
    """
    real = {mode: statistics.fmean(report["real"][mode]) for mode in MODES}
    lines = [
        "| variant | fixed | stream | generators | seconds |",
        "|---|---:|---:|---:|---:|",
        *([f"| real images | {real['fixed']:.1f} | {real['stream']:.1f} | | |"] if with_real else []),
    ]
    for name, words in report["variants"].items():
        rows = [row for row in report["rows"] if row["variant"] == name]
        measured = [row for row in rows if "failed" not in row]
        if rows and not measured:
            lines.append(f"| {words} | refused: {_cell(rows[0]['failed'])} | | {len(rows)} | |")
        elif rows:
            means = [_mean([statistics.fmean(row[mode]) for row in measured]) for mode in MODES]
            seconds = statistics.fmean(row["seconds"] for row in measured)
            number = str(len(measured)) + (f" of {len(rows)}" if len(measured) < len(rows) else "")
            lines.append(f"| {words} | {means[0]} | {means[1]} | {number} | {seconds:.0f} |")
    return lines


def ablation_text(report: Mapping[str, Any]) -> list[str]:
    """Write what was measured, one table per machine: rows of one machine and precision can be told apart by less."""
    places: dict[str, list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        places.setdefault(row.get("machine", report["machine"]), []).append(row)
    student, config = report["student"], ", ".join(f"`{k}={v}`" for k, v in report["changed"].items())
    lines = [
        f"{report['data']} at {report['image_px']} pixels; preset `{report['preset']}` with {config}. Accuracy in "
        f"percent on {SPLITS[report.get('split', 'test')]}, of ConvNet-3 of width {student['width']} after "
        f"{student['epochs']} epochs of {student['ipc']} images per class, {len(report['real']['fixed'])} students for "
        f"every generator. Seconds: what distilling took. {report['threads']} thread, torch {report['torch']}.",
    ]
    if len(places) > 1:  # which of them the students of real images were trained on, the report does not say
        real = [statistics.fmean(report["real"][mode]) for mode in MODES]
        lines[0] += f" Real images: {real[0]:.1f} in `fixed`, {real[1]:.1f} in `stream`."
    for machine, rows in places.items():
        days = sorted({row.get("date", report["date"])[:10] for row in rows})
        lines += ["", f"{machine}, {' to '.join(dict.fromkeys((days[0], days[-1])))}:", ""]
        lines += ablation_table({**report, "rows": rows}, with_real=len(places) == 1)
    return lines


def distill_section(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write how fast distilling is.

    Args:
        reports: by file stem, the reports of `lab/distill_speed.py`.
    """
    if not reports:
        return []
    lines = [
        "## Speed of distilling",
        "",
        "Ours against the published recipe at equal network sizes, in interleaved runs of `lab/distill_speed.py`. The "
        "ratio is the recipe's time per step over ours, our pool included: medians over rounds, with their range. Two "
        "precisions in a row mean ours in the first, the recipe in the second. `tuned` is the recipe with our memory "
        "layout (channels_last) and fused optimisers.",
        "",
    ]
    for stem, report in reports.items():
        lines += [*_speeds(stem, report), ""]
    return lines


def processes_section(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write how much faster several processes distil than one.

    Args:
        reports: by file stem, the reports of `lab/processes.py`.
    """
    if not reports:
        return []
    lines = [
        "### Several processes",
        "",
        "`torchrun` with several processes against one at an equal batch, in interleaved runs of `lab/processes.py`: "
        "real images that generator steps consume per second. First losses: the greatest relative difference in the "
        "first log line.",
        "",
    ]
    for stem, report in reports.items():
        lines += [
            f"{stem}.json: preset `{report['preset']}`, {report['image_px']}x{report['image_px']}x"
            f"{report['channels']}, batch {report['batch']}, {report['rounds']} rounds, autocast {report['autocast']}; "
            f"{report['machine']}, {report['threads']} thread(s) per process, torch {report['torch']}; "
            f"{report['date']}. First losses: {report['first_loss_difference']:.0e}.",
            "",
            f"| stage | one process | {report['processes']} processes | times as fast | range |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {row['stage']} | {row['one_images_per_s']:,.0f} | {row['several_images_per_s']:,.0f} "
                f"| {row['ratio']:.2f} | {row['least']:.2f} to {row['most']:.2f} |"
                for row in report["rows"]
            ),
            "",
        ]
    return lines


def _speeds(stem: str, report: Mapping[str, Any]) -> list[str]:
    """Write one report of `lab/distill_speed.py`: its ratios, then the speeds behind them."""
    clock = report["clock"]
    lines = [
        f"{stem}.json: networks of `{report['preset']}`, {report['image_px']}x{report['image_px']}x"
        f"{report['channels']}, batch {report['batch']}, {report['rounds']} rounds; {report['machine']}, "
        f"{report['threads']} thread(s), torch {report['torch']}; {report['date']}. "
        f"{'Processor' if clock == 'cpu' else 'Wall'} time; load {report['load']:.1f}.",
        "",
        "| stage | ours | against | times as fast | range | promised |",
        "|---|---|---|---:|---:|---|",
    ]
    compared = ("what", "ours", "rival", "recipe")
    promised = {tuple(c[field] for field in compared): c for c in report["claims"]}
    for row in report["ratios"]:
        claim = promised.get(tuple(row[field] for field in compared))
        verdict = f"at least {claim['least']:g}: {'holds' if claim['holds'] else 'missed'}" if claim else ""
        lines.append(
            f"| {row['what']} | {row['ours']} | {row['rival']} {row['recipe']} | {row[clock]:.2f} "
            f"| {row[f'{clock}_least']:.2f} to {row[f'{clock}_most']:.2f} | {verdict} |"
        )
    lines += [
        "",
        f"The pool: {report['pool_sgd_steps']:,} SGD steps in all ({', '.join(report['architectures'])}), once; its "
        "time is spread over the images of the stage, and is in the figures of stage 2.",
        "",
        "| stage | side | precision | ms per step | images/s | processor time of the pool, s |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in report["rows"]:
        pooled = row["side"] == "ours" and row["what"] != "stage 1"
        lines.append(
            f"| {row['what']} | {row['side']} | {row['precision']} | {row[f'step_ms_{clock}']:,.0f} "
            f"| {row[f'images_per_s_{clock}']:,.1f} | {format(row['pool_s_cpu'], ',.0f') if pooled else '-'} |"
        )
    return lines


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
