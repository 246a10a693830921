"""Class names as names of folders."""

import pytest

from dim.runtime.bundle_format.folder_names import check_folder_names
from dim.runtime.errors import BadValueError


@pytest.mark.parametrize(
    "name", ["a/b", "a\\b", "..", ".", "", ".cat", "cat.", "cat ", " cat", "NUL", "con.x", "a\nb", "x" * 201]
)
def test_names_that_cannot_be_folders(name: str) -> None:
    with pytest.raises(BadValueError, match="cannot be the name of a folder; write the set as npz"):
        check_folder_names(("dog", name), (1, 1))
    check_folder_names(("dog", name), (1, 0))


def test_names_of_the_sets_own_files_and_of_one_folder() -> None:
    with pytest.raises(BadValueError, match=r"The class 'dataset.json' cannot be the name of a folder"):
        check_folder_names(("dataset.json",), (1,))
    with pytest.raises(BadValueError, match="'A' and 'a' would be one folder on Windows and macOS"):
        check_folder_names(("A", "a"), (1, 1))
    check_folder_names(("maple tree", "été", "0", "T-shirt"), (1, 1, 1, 1))
