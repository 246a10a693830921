"""Count the fields of an ONNX file's bytes before they are parsed, so that parsing takes a bounded amount of memory.

A parser makes an object of every message: 120 MiB of empty nodes, two bytes each, took 10 GB. Here the fields are
counted first, along the messages that a graph has many of; what is stored as plain bytes is free. Format: Protocol
Buffers, "Encoding"; field numbers: onnx.proto.
"""

from dim.runtime.errors import GraphError

MAX_FIELDS = 2**18
"""Fields of the model, its graph, nodes, attributes and tensors; an object each."""
MAX_SMALL_BYTES = 4 * 2**20
"""Bytes outside of the weights: names, shapes, whole numbers of one byte that become eight."""

# The messages inside each message that are looked into, by field number.
_INNER = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor"},
}
# float_data, raw_data and double_data take as much memory as they have bytes.
_PLAIN = {"tensor": (4, 9, 10)}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


def check_wire(data: bytes) -> None:
    """Check that an ONNX file has no more fields and small values than a generator needs.

    Args:
        data: the file's bytes.

    Raises:
        GraphError: it has more, or is no message at all.
    """
    fields, small = 0, 0
    waiting = [("model", 0, len(data))]
    while waiting:
        kind, at, stop = waiting.pop()
        inner, plain = _INNER.get(kind, {}), _PLAIN.get(kind, ())
        while at < stop:
            tag, at = _read_varint(data, at, stop)
            number, wire = tag >> 3, tag & 7
            fields += 1
            if wire == _LENGTH:
                size, at = _read_varint(data, at, stop)
                if number in inner:
                    waiting.append((inner[number], at, at + size))
                elif number not in plain:
                    small += size
                at += size
            elif wire == _VARINT:
                _, at = _read_varint(data, at, stop)
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:
                raise _not_a_model()
            if fields > MAX_FIELDS or small > MAX_SMALL_BYTES:
                raise GraphError(
                    f"The ONNX file holds more than {MAX_FIELDS:,} fields, or more than {MAX_SMALL_BYTES:,} bytes "
                    "outside of its weights, which no generator needs."
                )
        if at != stop:
            raise _not_a_model()


def _read_varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """Read a whole number of seven bits per byte; return it and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _not_a_model()


def _not_a_model() -> GraphError:
    return GraphError("The file is not an ONNX model: it does not parse.")
