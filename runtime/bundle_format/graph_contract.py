"""The graph contract: the ONNX files that an engine may load.

Generator: inputs `latents` float32 [N, latent_dim] and `labels` int64 [N], output `images` uint8 [N, H, W, C], made by
a last Cast. Teacher: input `images` uint8 [N, H, W, C], output `logits` float32 [N, K]. N is symbolic and the same name
everywhere. The rules behind it are in `graph_rules`.
"""

import hashlib
from typing import Any

from dim.runtime.bundle_format.graph_rules import GraphContract, check_model
from dim.runtime.bundle_format.graph_wire import check_wire
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import GraphError, MissingExtraError
from dim.runtime.storage.private_cache import recall, remember

# Parsing and shape inference hold about six copies, so a hostile file costs at most about a gigabyte.
MAX_ONNX_BYTES = 128 * 2**20
# Part of the key in the private cache: raise it when a rule becomes stricter.
_RULES_VERSION = 6


def generator_contract(manifest: Manifest) -> GraphContract:
    """Return the contract of `generator.<precision>.onnx`."""
    return GraphContract(
        inputs=(("latents", "FLOAT", (manifest.latent_dim,)), ("labels", "INT64", ())),
        output=("images", "UINT8", (manifest.height, manifest.width, manifest.channels)),
        last_operator="Cast",
    )


def teacher_contract(manifest: Manifest) -> GraphContract:
    """Return the contract of `teacher.onnx`."""
    return GraphContract(
        inputs=(("images", "UINT8", (manifest.height, manifest.width, manifest.channels)),),
        output=("logits", "FLOAT", (manifest.num_classes,)),
        last_operator=None,
    )


def check_graph(onnx_bytes: bytes, manifest: Manifest) -> int:
    """Check a generator's ONNX file before an engine sees it; once per file, the private cache remembers.

    Args:
        onnx_bytes: the file.
        manifest: says which shapes are right.

    Returns:
        rows that one run may be given, for bounded memory: see `graph_rules.MAX_ELEMENTS_PER_RUN`.

    Raises:
        GraphError: the file breaks the contract or goes beyond a limit.
        MissingExtraError: onnx is not installed.
    """
    return check_contract(onnx_bytes, generator_contract(manifest))


def check_contract(onnx_bytes: bytes, contract: GraphContract) -> int:
    """Check an ONNX file against any contract; otherwise as `check_graph`."""
    if len(onnx_bytes) > MAX_ONNX_BYTES:
        raise GraphError(f"The ONNX file has {len(onnx_bytes):,} bytes; at most {MAX_ONNX_BYTES:,} are read.")
    key = hashlib.sha256(f"{_RULES_VERSION} {contract} {hashlib.sha256(onnx_bytes).hexdigest()}".encode()).hexdigest()
    remembered = recall("graphs", key)
    if remembered is not None and remembered.isdecimal():
        return int(remembered)
    rows = check_model(parse_onnx(onnx_bytes), contract)
    remember("graphs", key, str(rows))
    return rows


def parse_onnx(onnx_bytes: bytes) -> Any:
    """Parse an ONNX file into an `onnx.ModelProto`.

    Raises:
        GraphError: it is no ONNX file, holds far more fields than a generator, text that is not UTF-8, or fields that
            this version of onnx does not know.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise MissingExtraError("onnx", "cpu", "check ONNX files before they are run") from None
    check_wire(onnx_bytes)
    try:
        model = onnx.ModelProto.FromString(onnx_bytes)
    except DecodeError:
        raise GraphError("The file is not an ONNX model: it does not parse.") from None
    known_bytes = model.ByteSize()
    model.DiscardUnknownFields()
    # An engine with a newer parser would read what was not checked here.
    if model.ByteSize() != known_bytes:
        raise GraphError("The ONNX file holds fields that this version of onnx does not know: upgrade onnx.")
    _check_text(model)
    return model


def _check_text(message: Any) -> None:
    """Check that all text is UTF-8: protobuf hands over the rest as bytes, and engines read it each in its own way."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                _check_text(inner)
        elif field.cpp_type == field.CPPTYPE_STRING and field.type != field.TYPE_BYTES:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if not isinstance(text, str):
                    raise GraphError(f"The ONNX file holds text in {field.name} that is not UTF-8: {text[:40]!r}.")
