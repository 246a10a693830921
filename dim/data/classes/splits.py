"""Chooses the training and the test split among the named splits of a source."""

from collections.abc import Iterable

from dim.data.classes.layout import find_asked_splits, split_role
from dim.runtime.errors import DataError


def choose_splits(names: Iterable[str], asked: str | None, where: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Choose a training and a test split.

    Args:
        names: of the splits that there are.
        asked: one name, or two joined by a comma, training first; None for those with usual names.
        where: stands for the source in messages.

    Returns:
        the training split, the test split or None, and a remark on what else there is.

    Raises:
        DataError: one asked for is not there, or none is named like a training split.
    """
    names = list(names)
    listed = ", ".join(names) or "none"
    if asked is not None:
        train, *rest = find_asked_splits(names, asked, where)
        test = rest[0] if rest else None
    else:
        roles = {split_role(name): name for name in reversed(names)}
        found = roles.get("train", names[0] if len(names) == 1 else None)
        if found is None:
            raise DataError(
                f"{where}: no split is named 'train' (found: {listed}); say --split TRAIN or --split TRAIN,TEST."
            )
        train = found
        test = roles.get("test") or roles.get("validation")
        test = None if test == train else test
    others = [name for name in names if name not in (train, test)]
    remarks = [f"the split '{test}' serves as test split"] if test and split_role(test) != "test" else []
    remarks += [f"splits passed over: {', '.join(others[:5])}"] if others else []
    return train, test, tuple(remarks)
