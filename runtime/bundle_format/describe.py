"""Describes a bundle in one line of text and in a notebook; foreign text is cleaned."""

import base64
from html import escape
from pathlib import Path

from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import PREVIEW
from dim.runtime.errors import BundleError, printable

_MAX_NAMES = 12
_MAX_PREVIEW_BYTES = 4 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


def describe_line(manifest: Manifest) -> str:
    """Describe a bundle: `mnist: 10 classes, 28x28x1, fp32 fp16 int8, 5.0 MB`."""
    m = manifest
    shape = f"{m.image.height}x{m.image.width}x{m.image.channels}"
    return f"{printable(m.name)}: {len(m.classes)} classes, {shape}, {' '.join(m.precisions)}, {_megabytes(m)}"


def describe_html(path: Path, manifest: Manifest) -> str:
    """Describe a bundle as HTML for a notebook: its preview, where it has one, and its facts.

    Args:
        path: the bundle's folder.
        manifest: its manifest.
    """
    m = manifest
    names = ", ".join(m.classes[:_MAX_NAMES]) + (", ..." if len(m.classes) > _MAX_NAMES else "")
    facts = {
        "classes": f"{len(m.classes)}: {names}",
        "images": f"{m.image.height} x {m.image.width}, {'grey' if m.image.channels == 1 else 'colour'}",
        "source": f"{m.source.name}, {sum(m.source.class_counts):,} training images",
        "precisions": ", ".join(m.precisions),
        "size": _megabytes(m),
        "licence": m.licence,
        "folder": str(path),
    }
    rows = "".join(f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in facts.items())
    picture = _picture(path, m)
    return f"<div><strong>{_text(m.name)}</strong>{picture}<table>{rows}</table></div>"


def _picture(path: Path, manifest: Manifest) -> str:
    """The preview as an image that loads nothing from elsewhere; nothing where it is missing or altered."""
    if PREVIEW not in manifest.files:
        return ""
    try:
        data = read_checked_file(path, manifest, PREVIEW, max_bytes=_MAX_PREVIEW_BYTES)
    except BundleError:
        return ""
    if not data.startswith(_PNG):
        return ""
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<div><img src="{address}" alt="Images that the bundle draws, one row per class"></div>'


def _text(text: str) -> str:
    return escape(printable(text), quote=True)


def _megabytes(manifest: Manifest) -> str:
    return f"{sum(record.size_bytes for record in manifest.files.values()) / 1e6:.1f} MB"
