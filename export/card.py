"""The model card of a bundle, `README.md`: written from the manifest and from what the export measured; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dim.runtime.bundle_format.files import load_manifest, read_checked_file, update_bundle
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import FIXED_LATENTS, TEACHER_ONNX
from dim.runtime.errors import BadValueError
from dim.runtime.storage import strict_json

if TYPE_CHECKING:
    from dim.config import DistillConfig

RECORD_NAME = "export.json"
MAX_RECORD_BYTES = 2**20
MAX_CLASSES_SHOWN = 20
NATIVE_SHAPES = {
    "digits": (8, 1),
    "mnist": (28, 1),
    "fashion-mnist": (28, 1),
    "svhn": (32, 3),
    "cifar10": (32, 3),
    "cifar100": (32, 3),
}
"""Side and channels of the datasets that `dim distill` knows by name; others need `--size` and `--channels`."""
REPORTING_ONLY = ("name", "preset", "seed", "checkpoint_steps", "grid_steps", "log_steps")
"""Fields of a configuration that the command names otherwise, or that change nothing in the result."""


def model_card(manifest: Manifest, record: Mapping[str, Any] | None = None) -> str:
    """Write the card of a bundle.

    Args:
        manifest: of the bundle.
        record: what `export.json` holds; None where the bundle has none.

    Returns:
        Markdown.
    """
    sections = [
        _head(manifest),
        _usage(manifest),
        _accuracy(manifest),
        _data(manifest),
        _files(manifest, record or {}),
        _making(manifest, record or {}),
        _limits(manifest),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def record_accuracy(bundle_path: Path, rows: Sequence[Mapping[str, Any]]) -> Manifest:
    """Put rows of `dim eval` into a bundle's manifest and its card.

    Args:
        bundle_path: the bundle's folder.
        rows: as `dim eval` writes them into `results.json`; each replaces the old one of the same protocol.

    Returns:
        the new manifest.

    Raises:
        BundleError: the bundle is damaged.
        OutputError: the disk refused.
    """
    manifest = load_manifest(bundle_path)
    measured = {_protocol(row) for row in rows}
    merged = [*(row for row in manifest.accuracy if _protocol(row) not in measured), *rows]
    card = model_card(replace(manifest, accuracy=tuple(merged)), read_record(bundle_path, manifest))
    return update_bundle(bundle_path, accuracy=merged, readme=card)


def _protocol(row: Mapping[str, Any]) -> tuple[object, ...]:
    """What tells one measured row from another: all but the numbers."""
    names = ("data", "source", "subject", "mode", "ipc", "arch", "width", "labels", "recipe", "precision", "epochs")
    return (*(row.get(name) for name in names), _drawn_in(row))


def _drawn_in(row: Mapping[str, Any]) -> str:
    """The precision of the engine that drew a row's images; empty for real ones."""
    engine = str(row.get("engine") or "").split()
    return str(row.get("engine_precision") or "".join(engine[1:2]))


def read_record(bundle_path: Path, manifest: Manifest) -> dict[str, Any]:
    """Read `export.json` of a bundle; empty where there is none, or none that an export wrote."""
    if RECORD_NAME not in manifest.files:
        return {}
    data = read_checked_file(bundle_path, manifest, RECORD_NAME, max_bytes=MAX_RECORD_BYTES)
    record = strict_json.parse(data, RECORD_NAME, MAX_RECORD_BYTES)
    return record if _is_record(record) else {}


def _is_record(record: Any) -> bool:
    """Say whether a stranger's `export.json` has the form in which this page reads it."""

    def fits(block: Any, **kinds: Any) -> bool:
        return isinstance(block, Mapping) and all(isinstance(block.get(key), kind) for key, kind in kinds.items())

    number = int | float
    if not fits(record, agreements=list):
        return False
    agreement = {
        "precision": str,
        "reference": str,
        "max_levels": int,
        "psnr_db": number | None,
        "changed_share": number,
    }
    if not all(fits(block, **agreement) for block in record["agreements"]):
        return False
    accepted = record.get("int8_acceptance")
    if accepted is None:
        return True
    shares = fits(accepted, pairs=int, same_class=number, by_classifier=Mapping)
    return shares and all(isinstance(share, number) for share in accepted["by_classifier"].values())


def reproducing_command(config: Mapping[str, Any]) -> str | None:
    """The `dim distill` line that makes a run again, or None where its preset is not known or it is no run's.

    Args:
        config: a run's `config.json`.
    """
    try:
        return _command(config)
    except (BadValueError, AttributeError, KeyError, TypeError, ValueError):  # a stranger's configuration
        return None


def _command(config: Mapping[str, Any]) -> str:
    from dim.config import to_dict
    from dim.presets import preset

    data = config["data"]
    shape: Any = SimpleNamespace(
        name=data["name"],
        classes=tuple(data["classes"]),
        class_counts=tuple(data["class_counts"]),
        height=data["image_px"],
        channels=data["channels"],
    )
    start = _flat(to_dict(preset(config["preset"], data=shape)))
    words = ["dim distill", f"--data {_shell(data['name'])}", f"--preset {config['preset']}"]
    if NATIVE_SHAPES.get(data["name"]) != (data["image_px"], data["channels"]):
        words.append(f"--size {int(data['image_px'])} --channels {int(data['channels'])}")
    if config.get("seed"):
        words.append(f"--seed {int(config['seed'])}")
    # A field that came after the run has a default that changes nothing.
    found = _flat(to_dict(_defaults())) | _flat(config)
    for field, value in start.items():
        if field not in REPORTING_ONLY and found[field] != value:
            words.append("--set " + _shell(f"{field}={json.dumps(found[field])}"))
    return " ".join([*words, f"--out runs/{_shell(config['name'])}"])


def _defaults() -> DistillConfig:
    from dim.config import DistillConfig, StageConfig

    stage = StageConfig(steps=1, batch_size=4)
    return DistillConfig(name="", preset="", stage1=stage, stage2=stage)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shell(text: str) -> str:
    import shlex

    return shlex.quote(str(text))


def _text(value: object) -> str:
    """Text of unknown origin, harmless inside Markdown: in tables, and as markup."""
    cleaned = " ".join(str(value).split())
    for letter in "\\`*_[]<>|#":
        cleaned = cleaned.replace(letter, "\\" + letter)
    return cleaned


def _head(m: Manifest) -> str:
    kind = "grey" if m.channels == 1 else "colour"
    return f"""
# {_text(m.name)}

A compiled generator that draws labelled {m.height}x{m.width} {kind} images of {len(m.classes)} classes: training sets
of any size, without PyTorch. It was distilled from {_text(m.source.name)} with `{_text(m.created_by)}`.

![One row per class](preview.png)
"""


def _usage(m: Manifest) -> str:
    shape = f"uint8 [N, {m.height}, {m.width}, {m.channels}]"
    return f"""
## Use

```sh
pip install 'dim-distill[cpu]'
dim generate --bundle {_shell(m.name)}.dim --ipc 50 --out data/
```

```python
from dim.runtime import open_bundle

with open_bundle({json.dumps(m.name + ".dim")}) as bundle:
    for images, labels in bundle.stream(ipc=10, batch_size=64, epochs=1000):  # {shape}
        ...
```

Pixels are uint8. Normalise them as the source was: mean {_numbers(m.source.mean)}, standard deviation
{_numbers(m.source.std)}, of pixels divided by 255.
"""


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _accuracy(m: Manifest) -> str:
    head = "## Accuracy\n\nClassifiers trained on these images, tested on the real test split.\n\n"
    if not m.accuracy:
        return f"{head}Not measured yet:  `dim eval --data {_shell(m.source.name)} --bundle {_shell(m.name)}.dim`"
    lines = [
        "| trained on | drawn in | mode | images per class | network | recipe, epochs, precision | labels | accuracy % "
        "| seeds | steps | distinct images |"
    ]
    lines.append("|" + "---|" * 11)
    for row in m.accuracy:
        network = _text(row.get("arch", "?")) + (f" (width {_text(row['width'])})" if row.get("width") else "")
        cells = [
            _text(row.get("subject", "?")),
            _text(_drawn_in(row) or "-"),
            _text(row.get("mode", "?")),
            _text(row.get("ipc") or "all"),
            network,
            _text(", ".join(str(part) for part in _recipe(row))),
            _text(row.get("labels", "hard")),
            _mean(row),
            str(len(row["seeds"]) if isinstance(row.get("seeds"), list | tuple) else 0),
            _count(row.get("steps")),
            _count(row.get("distinct_images")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    protocols = dict.fromkeys(str(row["protocol"]) for row in m.accuracy if row.get("protocol"))
    notes = [f"Protocol: {_text(protocol)}." for protocol in protocols]
    notes.append("Mean and deviation over the seeds.")
    return head + "\n".join(lines) + "\n\n" + "\n".join(notes)


def _recipe(row: Mapping[str, Any]) -> list[object]:
    """Of a row's students: recipe, epochs, and in which precision they were trained, where the row says so."""
    return [row.get("recipe", "?"), _count(row.get("epochs")), *([row["precision"]] if row.get("precision") else [])]


def _mean(row: Mapping[str, Any]) -> str:
    mean, deviation = row.get("accuracy_mean"), row.get("accuracy_std")
    if not isinstance(mean, int | float):
        return "?"
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if isinstance(deviation, int | float) else "")


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _data(m: Manifest) -> str:
    counts = [
        f"{_text(name)} ({count:,})"
        for name, count in zip(m.classes[:MAX_CLASSES_SHOWN], m.source.class_counts, strict=False)
    ]
    more = len(m.classes) - MAX_CLASSES_SHOWN
    return f"""
## Data

Source: {_text(m.source.name)}. {_text(m.source.note)}

Licence of the source: {_text(m.source.licence) or "unknown"}. Licence of this bundle: {_text(m.licence) or "unknown"}.

Classes, with the number of training images: {", ".join(counts)}{f", and {more:,} more" if more > 0 else ""}.
"""


def _files(m: Manifest, record: Mapping[str, Any]) -> str:
    lines = ["| file | bytes | SHA-256 |", "|---|---|---|"]
    for name, file in sorted(m.files.items()):
        if name != "README.md":
            lines.append(f"| `{name}` | {file.size_bytes:,} | `{file.sha256}` |")
    text = "## Files\n\n" + "\n".join(lines) + f"\n\nContent id: `{m.content_id}`."
    if TEACHER_ONNX in m.files:
        text += f" `{TEACHER_ONNX}` gives soft labels: uint8 images in, logits out."
    if FIXED_LATENTS in m.files:
        text += f" `{FIXED_LATENTS}` holds latents optimised for fixed sets."
    agreements = [a for a in record.get("agreements", []) if isinstance(a, dict)]
    if agreements:
        text += (
            "\n\nWhat the files draw, beside the network in torch (float32) or the fp32 file:\n\n"
            "| precision | beside | largest difference, levels of 255 | PSNR dB | pixels that differ % |\n"
            "|---|---|---|---|---|\n"
        )
        for a in agreements:
            psnr = "equal" if a.get("psnr_db") is None else f"{a['psnr_db']:.1f}"
            changed = f"{100 * a.get('changed_share', 0):.2g}"
            cells = [a.get("precision"), a.get("reference"), a.get("max_levels"), psnr, changed]
            text += f"| {' | '.join(_text(cell) for cell in cells)} |\n"
    if accepted := record.get("int8_acceptance"):
        each = ", ".join(f"{_text(k)} {100 * v:.2f}" for k, v in accepted["by_classifier"].items())
        text += (
            f"\nThe run's classifiers gave the same class to {100 * accepted['same_class']:.2f} % of "
            f"{accepted['pairs']:,} pairs of fp32 and int8 images ({each})."
        )
    return text


def _making(m: Manifest, record: Mapping[str, Any]) -> str:
    config = m.distill_config
    command = reproducing_command(config) if {"data", "preset", "name"} <= config.keys() else None
    lines = ["## How it was made", ""]
    if command is not None:
        export = f"dim export runs/{_shell(config['name'])} --precision {','.join(m.precisions)}"
        lines += ["```sh", command, export, "```", ""]
        if record.keys() & {"refined", "mirrored_after"}:
            lines += ["It was changed after its export, so these commands make a similar bundle, not this one.", ""]
        if m.source.name not in NATIVE_SHAPES:
            lines += [f"`--data` takes the path of the source that is called {_text(m.source.name)} here.", ""]
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


def _limits(m: Manifest) -> str:
    return f"""
## Limits

- It draws {len(m.classes)} classes at {m.height}x{m.width} and nothing else; what its source lacks or gets wrong, its
  images lack or get wrong too.
- Images may resemble images of the source: a bundle does not make private data public-safe.
- Labels, order and latents are the same everywhere. Pixels are the same for one engine, version, kind of device,
  precision and padded batch; between engines they agree within what `dim verify` checks.
- Accuracy holds for the networks, sizes and steps in the table above, and for no others.
"""
