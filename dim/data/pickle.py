"""Plain values from Python pickles without executing them: what the official CIFAR batches hold, and nothing else.

They were pickled by Python 2 (protocol 2; 0 and 1 are read as well): a dictionary of byte strings, lists of integers
and strings, and one uint8 array. `pickletools` cuts the file into instructions; those that build such values are
interpreted here on a stack of our own. The names that an array needs (`numpy.core.multiarray._reconstruct`,
`numpy.ndarray`, `numpy.dtype`) are compared as text and never imported; every other name, and every other instruction,
is refused.
"""

import io
import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.limits import MAX_ARRAY_DIMS, MAX_PICKLE_STEPS
from dim.runtime.errors import DataError

_RECONSTRUCT = frozenset(("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"))
_NAMES = _RECONSTRUCT | {"numpy ndarray", "numpy dtype"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    ("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2")
    + ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
    + ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINFLOAT", "FLOAT")
)
_TWO_BYTE_TEXT = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INTERPRETED = (
    _VALUES
    | _CONSTANTS.keys()
    | _TUPLES.keys()
    | {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GET", "MARK", "EMPTY_LIST", "EMPTY_DICT"}
    | {"LIST", "DICT", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
    | {"STOP", "PROTO", "FRAME"}
)
_OPCODES: dict[str, Any] = {opcode.code: opcode for opcode in pickletools.opcodes}


class _Refused(Exception):
    """The file holds something else than plain values."""


@dataclass(eq=False)
class _Name:
    text: str


@dataclass(eq=False)
class _Dtype:
    code: str


@dataclass(eq=False)
class _Array:
    """An array between its creation and the moment its contents arrive."""

    value: NDArray[Any] | None = None


_MARK = object()


def read_pickle(data: bytes, name: str) -> dict[str, Any]:
    """The dictionary in a pickle of plain values.

    Args:
        data: the pickle.
        name: stands for the file in messages.

    Returns:
        Keys as str; values as Python's own types, byte strings as bytes, arrays as NumPy arrays of numbers.

    Raises:
        DataError: damaged, or holding anything but plain values and arrays of numbers.
    """
    try:
        value = _run(data)
        if not isinstance(value, dict):
            raise _Refused("the pickle holds no dictionary")
        return {_as_text(key): _plain(item) for key, item in value.items()}
    except _Refused as error:
        raise DataError(f"{name}: {error}; only the official CIFAR batches are read, nothing is executed") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise DataError(f"{name}: the pickle is damaged or truncated ({error}): fetch it again") from error


def _run(data: bytes) -> Any:
    value: dict[Any, Any]
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for code, argument in _instructions(data):
        if code in _VALUES:
            stack.append(argument.encode("latin-1") if code in _TWO_BYTE_TEXT else argument)
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == "MARK":
            stack.append(_MARK)
        elif code == "EMPTY_LIST":
            stack.append([])
        elif code == "EMPTY_DICT":
            stack.append({})
        elif code == "LIST":
            stack.append(_pop_to_mark(stack))
        elif code == "DICT":
            items, value = _pop_to_mark(stack), {}
            _set_items(value, items)
            stack.append(value)
        elif code == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif code in _TUPLES:
            count = _TUPLES[code]
            stack.append(tuple(_pop(stack) for _ in range(count))[::-1])
        elif code == "APPEND":
            item = _pop(stack)
            _top(stack, list).append(item)
        elif code == "APPENDS":
            items = _pop_to_mark(stack)
            _top(stack, list).extend(items)
        elif code == "SETITEM":
            item, key = _pop(stack), _pop(stack)
            _set_items(_top(stack, dict), [key, item])
        elif code == "SETITEMS":
            items = _pop_to_mark(stack)
            _set_items(_top(stack, dict), items)
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            text = argument if code == "GLOBAL" else " ".join(reversed([str(_pop(stack)) for _ in range(2)]))
            if text not in _NAMES:
                raise _Refused(f"the pickle refers to '{text[:60]}'")
            stack.append(_Name(text))
        elif code == "REDUCE":
            arguments, function = _pop(stack), _pop(stack)
            stack.append(_build(function, arguments))
        elif code == "BUILD":
            state = _pop(stack)
            _fill(stack[-1], state)
        elif code == "STOP":
            if len(stack) != 1:
                raise ValueError(f"{len(stack)} values are left at its end")
            return stack[0]
    raise ValueError("it has no end")


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    """Name and argument of every instruction; one that is not interpreted is refused before its argument is read."""
    file = io.BytesIO(data)
    for _ in range(MAX_PICKLE_STEPS):
        byte = file.read(1)
        if not byte:
            raise ValueError("it has no end")
        opcode = _OPCODES.get(byte.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"{byte!r} is no instruction")
        if opcode.name not in _INTERPRETED:
            raise _Refused(f"the pickle uses the instruction {opcode.name}")
        if opcode.name == "GLOBAL":
            yield opcode.name, _line(file) + " " + _line(file)
        elif opcode.name == "STRING":
            text = _line(file)
            if len(text) < 2 or text[0] not in "'\"" or text[0] != text[-1] or "\\" in text:
                raise ValueError("a string that is not quoted plainly")
            yield opcode.name, text[1:-1]
        else:
            yield opcode.name, opcode.arg.reader(file) if opcode.arg is not None else None
    raise _Refused(f"the pickle has more than {MAX_PICKLE_STEPS} instructions")


def _line(file: io.BytesIO) -> str:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise ValueError("a line without end")
    return line[:-1].decode("latin-1")


def _pop(stack: list[Any]) -> Any:
    value = stack.pop()
    if value is _MARK:
        raise ValueError("a mark where a value is expected")
    return value


def _top(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise ValueError(f"a {type(stack[-1]).__name__} where a {kind.__name__} is expected")
    return stack[-1]


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1
    while stack[start] is not _MARK:
        start -= 1
        if start < 0:
            raise ValueError("no mark")
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, bytes)):
            raise _Refused(f"the pickle has a key of type {type(key).__name__}")
        target[key] = value


def _build(function: Any, arguments: Any) -> _Array | _Dtype:
    name = function.text if isinstance(function, _Name) else ""
    if name in _RECONSTRUCT:
        return _Array()
    if name == "numpy dtype" and isinstance(arguments, tuple) and arguments:
        return _Dtype(_as_text(arguments[0]))
    raise _Refused("the pickle calls something")


def _fill(target: Any, state: Any) -> None:
    if isinstance(target, _Dtype):
        return  # byte order of a one-byte type, and nothing else
    if not isinstance(target, _Array) or not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("the pickle fills an object")
    _, shape, dtype, fortran_order, data = state
    if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(data, bytes):
        raise _Refused("the pickle holds an array of something else than unsigned bytes")
    if not isinstance(shape, tuple) or len(shape) > MAX_ARRAY_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array without a proper shape")
    if math.prod(shape) != len(data):
        raise ValueError(f"an array of {len(data)} bytes for shape {list(shape)}")
    values = np.frombuffer(data, dtype=np.uint8)
    target.value = values.reshape(shape[::-1]).T if fortran_order else values.reshape(shape)


def _plain(value: Any) -> Any:
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, (_Array, _Dtype, _Name)) or value is _MARK:
        raise ValueError("an array without contents")
    return value


def _as_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)[:256]
