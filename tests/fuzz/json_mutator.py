"""Mutations that keep JSON valid, so that the checks behind the parser are reached."""

import hashlib
import json
import random
from contextlib import suppress
from typing import Any

from dim.runtime.storage import strict_json

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 2**32, 2**53 + 1, 2**63, 2**64 - 1, 0.5, -0.0, 1e308),
    *("", "x", "0", "..", "../evil", "/evil", "a/../../evil", "a\\b", "a\0b", "\ud800", "x" * 300, "ü", "npz"),
    *([], {}, [[]], [0], ["x"], {"x": 0}, [None] * 9),
)


def mutate_json(data: bytes, seed: int) -> bytes | None:
    """Change one to three places of a JSON document.

    Args:
        data: the document; None is returned where it is none.
        seed: decides the changes.

    Returns:
        the changed document; a manifest is signed anew, so that its contents are looked at.
    """
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return None
    choose = random.Random(seed)
    for _ in range(choose.randint(1, 3)):
        _change(root, choose)
    if isinstance(root[0], dict) and "manifest_sha256" in root[0] and choose.random() < 0.9:
        unsigned = {key: value for key, value in root[0].items() if key != "manifest_sha256"}
        with suppress(ValueError):
            root[0]["manifest_sha256"] = hashlib.sha256(strict_json.write_canonical(unsigned)).hexdigest()
    return json.dumps(root[0], ensure_ascii=choose.random() < 0.9).encode("utf-8", "surrogatepass")


def _change(root: list[Any], choose: random.Random) -> None:
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], (dict, list))]
    node, key = choose.choice(places)
    match choose.randrange(6):
        case 0 if node is not root:
            del node[key]
        case 1 if isinstance(node, list) and node is not root:
            node.insert(key, _copy(node[key]))
        case 2 if isinstance(node, dict):
            node[choose.choice(["x", "", "format_version", "../evil"])] = _copy(choose.choice(_VALUES))
        case 3 if type(node[key]) is int:
            node[key] += choose.choice([-1, 1, 2**16])
        case 4:
            other, other_key = choose.choice(places)
            node[key] = _copy(other[other_key])
        case _:
            node[key] = _copy(choose.choice(_VALUES))


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))
