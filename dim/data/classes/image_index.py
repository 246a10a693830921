"""Finds images by the names that a table gives them."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from dim.data.classes.layout import split_role


class ImageIndex:
    """Finds images by a path from the table's folder or from the top, or by a name, with or without extension."""

    def __init__(self, images: list[str]) -> None:
        self._paths = set(images)
        self._by_stem_path = {path.rpartition(".")[0]: path for path in images}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in images:
            name = path.rpartition("/")[2]
            self._by_name[name].append(path)
            self._by_stem[name.rpartition(".")[0]].append(path)

    def find(self, value: Any, folder: str, split: str = "") -> str | None:
        """Return an image's path, or None.

        Args:
            value: what the table calls it.
            folder: that of the table.
            split: that of the table; of images with one name, the one in a folder of that split is meant.
        """
        text = _clean(value)
        below = f"{folder}/{text}" if folder else text
        for path in (below, text):
            if path in self._paths:
                return path
            if path in self._by_stem_path:
                return self._by_stem_path[path]
        found = self.list_called(value)
        if len(found) > 1 and split:
            found = [path for path in found if _lies_in(path, split)]
        return found[0] if len(found) == 1 else None

    def list_called(self, value: Any) -> list[str]:
        """List the images of a name, in whatever folder."""
        name = _clean(value).rpartition("/")[2]
        return self._by_name.get(name) or self._by_stem.get(name, [])


def _clean(value: Any) -> str:
    return str(value).strip().replace("\\", "/").removeprefix("./")


def _lies_in(path: str, split: str) -> bool:
    role = split_role(split)
    folders: Iterable[str] = path.split("/")[:-1]
    return any(folder == split or (role and split_role(folder) == role) for folder in folders)
