"""Checks which class names can be names of folders on every system."""

from collections.abc import Sequence

from dim.runtime.errors import BadValueError

_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_FILES_OF_A_SET = {"dataset.json", "croissant.json", "readme.md", ".dim"}


def check_folder_names(classes: Sequence[str], counts: Sequence[int]) -> None:
    """Check that the classes of a set can be folder names everywhere.

    Args:
        classes: K names.
        counts: images of each class; a class without images has no folder and is not checked.

    Raises:
        BadValueError: a name holds a path separator or a control character, is empty, starts with a dot, ends with a
            dot or a blank, is longer than 200 bytes, is a device name of Windows or one of the set's own files, or
            equals another one up to upper and lower case.
    """
    seen: dict[str, str] = {}
    for name, count in zip(classes, counts, strict=True):
        if not count:
            continue
        folded = name.casefold()
        if (
            not name
            or any(letter in "/\\" or not letter.isprintable() for letter in name)
            or name.startswith((".", " "))
            or name.endswith((".", " "))
            or len(name.encode()) > 200
            or folded.split(".")[0] in _WINDOWS_DEVICES
            or folded in _FILES_OF_A_SET
        ):
            raise BadValueError(
                f"The class {name!r} cannot be the name of a folder; "
                "write the set as npz, npy, parquet or webdataset, which keep names as data."
            )
        if folded in seen:
            raise BadValueError(
                f"The classes {seen[folded]!r} and {name!r} would be one folder on Windows and macOS; "
                "write the set as npz, npy, parquet or webdataset, which keep names as data."
            )
        seen[folded] = name
