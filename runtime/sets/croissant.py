"""`croissant.json`: the set described for machines in Croissant 1.1 (https://docs.mlcommons.org/croissant/).

No dates, so that the same plan gives the same bytes; who publishes a set adds `datePublished`, `url` and `creator`.
Labels do not refer to the record set of classes: mlcroissant 1.1.1 applies a label's transform twice when it joins.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.markdown import escape
from dim.runtime.set_formats.part import FileEntry, PartRecord
from dim.runtime.set_formats.plan import Plan
from dim.runtime.sets.card import describe_set
from dim.runtime.storage import strict_json

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
CITATION = "Wang et al., DiM: Distilling Dataset into Generative Model, arXiv:2303.04707, 2023"
# Beyond this many files only the pattern is listed; every hash is in dataset.json.
MAX_LISTED = 1000
_MIME = {
    "imagefolder": "image/png",
    "npz": "application/zip",
    "npy": "application/octet-stream",
    "parquet": "application/x-parquet",
    "webdataset": "application/x-tar",
}
PATTERN = {
    "imagefolder": "*/*.png",
    "npz": "train*.npz",
    "npy": "*.npy",
    "parquet": "data/*.parquet",
    "webdataset": "train-*.tar",
}
_CONTEXT = Path(__file__).with_name("croissant_context.json")
"""The context of the specification, word for word."""


def write_croissant(manifest: Manifest, plan: Plan, records: Sequence[PartRecord]) -> bytes:
    """Describe a set.

    Args:
        manifest: the bundle's manifest.
        plan: the set's plan.
        records: the finished parts.

    Returns:
        the file `croissant.json`.

    Source: Croissant format specification 1.1.
    """
    files = [entry for record in records for entry in record.files]
    listed = files if len(files) <= MAX_LISTED else []
    block: dict[str, Any] = {
        "@context": json.loads(_CONTEXT.read_bytes()),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"{re.sub(r'[^A-Za-z0-9_-]+', '-', plan.bundle)}-generated-{plan.identity}",
        "description": describe_set(plan),
        "version": "1.0.0",
        "citeAs": CITATION,
        "keywords": ["synthetic", "dataset distillation", "image classification"],
        "distribution": [*(_file_object(plan, entry) for entry in listed), *_file_sets(plan, listed)],
        "recordSet": [_classes(plan), *_images(plan)],
    }
    if manifest.licence:
        # A licence's usual name or address stays what it is.
        plain = re.fullmatch(r"[A-Za-z0-9 .,:/()+-]+", manifest.licence)
        block["license"] = manifest.licence if plain else escape(manifest.licence)
    return strict_json.write_indented(block)


def _file_object(plan: Plan, entry: FileEntry) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path,
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": _MIME[plan.format],
        "sha256": entry.sha256,
    }


def _file_sets(plan: Plan, listed: Sequence[FileEntry]) -> list[dict[str, Any]]:
    """List the patterns: of the files, and for tar shards of the images inside."""
    if plan.format in ("npz", "npy") and listed:
        return []
    files: dict[str, Any] = {"@type": "cr:FileSet", "@id": "files", "name": "files"}
    if plan.format == "webdataset" and listed:
        inside = [{"@id": entry.path} for entry in listed]
        return [files | {"containedIn": inside, "encodingFormat": "image/png", "includes": "*.png"}]
    return [files | {"encodingFormat": _MIME[plan.format], "includes": PATTERN[plan.format]}]


def _classes(plan: Plan) -> dict[str, Any]:
    """List the classes in the order of their labels."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "key": {"@id": "classes/label"},
        "field": [_field("classes/label", "sc:Integer"), _field("classes/name", "sc:Text")],
        "data": [{"classes/label": label, "classes/name": name} for label, name in enumerate(plan.classes)],
    }


def _images(plan: Plan) -> list[dict[str, Any]]:
    """Describe image and label of every record; NPZ and NPY arrays are beyond what the format can say."""
    content: dict[str, Any] = {"fileSet": {"@id": "files"}, "extract": {"fileProperty": "content"}}
    if plan.format == "imagefolder":
        named = {"fileSet": {"@id": "files"}, "extract": {"fileProperty": "fullpath"}}
        label = _field("images/label", "sc:Text", named | {"transform": {"regex": r"([^/]+)/[^/]+\.png$"}})
    elif plan.format == "webdataset" and plan.parts <= MAX_LISTED:
        named = {"fileSet": {"@id": "files"}, "extract": {"fileProperty": "filename"}}
        label = _field("images/label", "sc:Integer", named | {"transform": {"regex": r"\d+-(\d+)\.png$"}})
    elif plan.format == "parquet":
        content = {
            "fileSet": {"@id": "files"},
            "extract": {"column": "image"},
            "transform": {"jsonPath": "bytes"},
        }
        label = _field("images/label", "sc:Integer", {"fileSet": {"@id": "files"}, "extract": {"column": "label"}})
    else:
        return []
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "images",
            "name": "images",
            "field": [_field("images/image", "sc:ImageObject", content), label],
        }
    ]


def _field(name: str, data_type: str, source: dict[str, Any] | None = None) -> dict[str, Any]:
    field: dict[str, Any] = {"@type": "cr:Field", "@id": name, "name": name, "dataType": data_type}
    return field | ({"source": source} if source else {})
