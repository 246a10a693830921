"""The model card of a bundle, `README.md`: written from the manifest and from what the export measured; no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from shlex import quote

from dim.export.accuracy_table import render_accuracy_table
from dim.export.distill_command import NATIVE_SHAPES, write_distill_command
from dim.export.quality_section import render_quality
from dim.export.record import ExportRecord
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import ACCEPTED, FIXED_LATENTS, TEACHER_ONNX
from dim.runtime.markdown import clean, escape, list_licence_fields, quote_code

MAX_CLASSES_SHOWN = 20


def render_card(manifest: Manifest, record: ExportRecord | None = None) -> str:
    """Write the card of a bundle.

    Args:
        manifest: of the bundle.
        record: what `export.json` holds; None where the bundle has none.

    Returns:
        Markdown.
    """
    record = record or ExportRecord()
    sections = [
        _render_front_matter(manifest),
        _render_head(manifest),
        _render_usage(manifest),
        _render_accuracy(manifest),
        render_quality(manifest.evaluation),
        _render_data(manifest),
        _render_files(manifest, record),
        _render_making(manifest, record),
        _render_limits(manifest),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _render_front_matter(m: Manifest) -> str:
    """Write the YAML that the Hugging Face Hub reads."""
    lines = [*list_licence_fields(m.licence), "pipeline_tag: unconditional-image-generation", "library_name: dim"]
    return "\n".join(["---", *lines, "tags:", "- dataset-distillation", "- synthetic-data", "- onnx", "---"])


def _render_head(m: Manifest) -> str:
    kind = "grey" if m.channels == 1 else "colour"
    return f"""
# {escape(m.name)}

A compiled generator that draws labelled {m.height}x{m.width} {kind} images of {len(m.classes)} classes: training sets
of any size, without PyTorch. It was distilled from {escape(m.source.name)} with {quote_code(m.created_by)}.

![One row per class](preview.png)
"""


def _render_usage(m: Manifest) -> str:
    shape = f"uint8 [N, {m.height}, {m.width}, {m.channels}]"
    return f"""
## Use

```sh
pip install 'dim-distill[cpu]'
dim generate --bundle {clean(quote(m.name))}.dim --ipc 50 --out data/
```

```python
import dim

with dim.open_bundle({json.dumps(m.name + ".dim")}) as bundle:
    for images, labels in bundle.stream(ipc=10, batch_size=64, epochs=1000):  # {shape}
        ...
```

Pixels are uint8. Normalise them as the source was: mean {_render_numbers(m.source.mean)}, standard deviation
{_render_numbers(m.source.std)}, of pixels divided by 255.
"""


def _render_numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _render_accuracy(m: Manifest) -> str:
    head = "## Accuracy\n\nTest accuracy of classifiers trained on these images, on the source's real test split.\n\n"
    if not m.accuracy:
        command = f"dim eval --data {quote(m.source.name)} --bundle {quote(m.name)}.dim"
        return f"{head}Not measured yet:  {quote_code(command)}"
    return head + render_accuracy_table(m.accuracy)


def _render_data(m: Manifest) -> str:
    counts = [
        f"{escape(name)} ({count:,})"
        for name, count in zip(m.classes[:MAX_CLASSES_SHOWN], m.source.class_counts, strict=False)
    ]
    more = len(m.classes) - MAX_CLASSES_SHOWN
    source_licence = escape(m.source.licence) or "unknown"
    return f"""
## Data

Source: {escape(m.source.name)}. {escape(m.source.note)}

Licence of the source: {source_licence}. Licence of this bundle: {escape(m.licence) or "unknown"}.

Classes, with the number of training images: {", ".join(counts)}{f", and {more:,} more" if more > 0 else ""}.
"""


def _render_files(m: Manifest, record: ExportRecord) -> str:
    lines = ["| file | bytes | SHA-256 |", "|---|---|---|"]
    for name, file in sorted(m.files.items()):
        if name != "README.md":
            lines.append(f"| {quote_code(name)} | {file.size_bytes:,} | `{file.sha256}` |")
    text = "## Files\n\n" + "\n".join(lines) + f"\n\nContent id: `{m.content_id}`."
    if TEACHER_ONNX in m.files:
        text += f" `{TEACHER_ONNX}` gives soft labels: uint8 images in, logits out."
    if FIXED_LATENTS in m.files:
        text += f" `{FIXED_LATENTS}` holds latents optimised for fixed sets."
    if ACCEPTED in m.files:
        text += f" `{ACCEPTED}` says which candidates are drawn: those whose label classifiers were surest of."
    if record.agreements:
        text += (
            "\n\nEach file's images against those of a reference, the network in torch (float32) or the fp32 file:\n\n"
            "| precision | reference | largest difference, levels of 255 | PSNR dB | pixels that differ % |\n"
            "|---|---|---|---|---|\n"
        )
        for a in record.agreements:
            psnr = "equal" if a.psnr_db is None else f"{a.psnr_db:.1f}"
            cells = [a.precision, a.reference, a.max_levels, psnr, f"{100 * a.changed_share:.2g}"]
            text += f"| {' | '.join(escape(cell) for cell in cells)} |\n"
    if accepted := record.int8_acceptance:
        each = ", ".join(f"{escape(name)} {100 * share:.2f}" for name, share in accepted.by_classifier.items())
        text += (
            f"\nThe run's classifiers gave the same class to {100 * accepted.same_class:.2f} % of "
            f"{accepted.pairs:,} pairs of fp32 and int8 images ({each})."
        )
    return text


def _render_making(m: Manifest, record: ExportRecord) -> str:
    config = m.distill_config
    command = write_distill_command(config) if {"data", "preset", "name"} <= config.keys() else None
    lines = ["## How it was made", ""]
    if command is not None:
        export = f"dim export runs/{quote(str(config['name']))} --precision {','.join(m.precisions)}"
        lines += ["```sh", command, export, "```", ""]
        if record.changes:
            lines += ["It was changed after its export, so these commands make a similar bundle:", ""]
            lines += [*(f"- {escape(change)}" for change in record.changes), ""]
        if m.source.name not in NATIVE_SHAPES:
            lines += [f"`--data` takes the path of the source that is called {escape(m.source.name)} here.", ""]
    lines += [
        "<details><summary>Resolved configuration</summary>",
        "",
        "```json",
        json.dumps({k: v for k, v in config.items() if k != "data"}, indent=2, sort_keys=True),
        "```",
        "",
        "</details>",
    ]
    return "\n".join(lines)


def _render_limits(m: Manifest) -> str:
    copies = ' "Copies" says what was found.' if "privacy" in m.evaluation else ""
    return f"""
## Limits

- It draws {len(m.classes)} classes at {m.height}x{m.width} and nothing else. What its source lacks or gets wrong, its
  images lack or get wrong too.
- Images may resemble images of the source: a bundle made from private data is not safe to publish.{copies}
- Labels, order and latents are the same everywhere. Pixels are the same for one engine, version, kind of device,
  precision and padded batch; between engines they agree within what `dim verify` checks.
- The accuracies hold for the networks, sizes and steps in the table, and for no others.
"""
