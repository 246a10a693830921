"""Reads the class names, in order, of a set that `dim generate` wrote."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dim.data.classes.labelled import is_whole
from dim.data.classes.labels import NAMED_BY_LABELS, name_labels
from dim.data.classes.layout import Layout
from dim.runtime.errors import DataError

_MAX_NAMES_BYTES = 2**26


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Read the class names from `classes.json` in a folder, or from the plan in `dataset.json`; None without either.

    Raises:
        DataError: `classes.json` is not a list of names.
    """
    found = _read_json(folder / "classes.json")
    if found is None:
        plan = _read_json(folder / "dataset.json")
        found = plan["plan"].get("classes") if isinstance(plan, dict) and isinstance(plan.get("plan"), dict) else None
    if found is None:
        return None
    return list_class_names(found, str(folder / "classes.json"))


def list_class_names(found: Any, where: str) -> tuple[str, ...]:
    """Return the class names that JSON holds: a list, or an object of names by number or of numbers by name.

    Raises:
        DataError: it is of another form.
    """
    if isinstance(found, dict):
        pairs = [(name, key) if isinstance(name, int) else (key, name) for key, name in found.items()]
        by_number = {str(number): name for number, name in pairs}
        if len(by_number) == len(found):
            found = [by_number.get(str(number)) for number in range(len(by_number))]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{where}: expected a list of class names, or an object of names by number from 0.")
    return tuple(found)


def are_numbered(layout: Layout) -> bool:
    """Whether all classes are called by whole numbers, no two by one number."""
    names = {*layout.train, *layout.test}
    return bool(names) and all(map(is_whole, names)) and len({int(name) for name in names}) == len(names)


def name_numbered(layout: Layout, names: tuple[str, ...], where: str) -> Layout:
    """Give classes that are called by whole numbers the names of `classes.json`.

    Raises:
        DataError: the numbers do not fit the names, or two names are one.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: two classes are called '{twice}'; give each a name of its own.")
    folders = list(dict.fromkeys([*layout.train, *layout.test]))
    named, numbers, _, remarks = name_labels(np.array([int(name) for name in folders]), None, names, where)
    place = dict(zip(folders, numbers.tolist(), strict=True))
    train, test = (
        {named[place[folder]]: split[folder] for folder in sorted(split, key=place.__getitem__)}
        for split in (layout.train, layout.test)
    )
    kept = [remark for remark in layout.remarks if not remark.endswith(NAMED_BY_LABELS)]
    return replace(layout, train=train, test=test, remarks=(*kept, *remarks))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_NAMES_BYTES:
        raise DataError(f"{path}: more than {_MAX_NAMES_BYTES} bytes, which is the limit for a list of names.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read ({str(error)[:80]}).") from error
