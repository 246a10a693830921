"""The formats of training sets, by name."""

from dim.runtime.errors import BadValueError
from dim.runtime.set_formats.imagefolder import ImageFolder
from dim.runtime.set_formats.npz import Npy, Npz
from dim.runtime.set_formats.parquet import Parquet
from dim.runtime.set_formats.part import PartFormat
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.set_formats.webdataset import WebDataset


def find_format(name: str) -> PartFormat:
    """Return the format of that name.

    Raises:
        BadValueError: there is no such format.
    """
    formats: dict[str, type[PartFormat]] = {
        "imagefolder": ImageFolder,
        "npz": Npz,
        "npy": Npy,
        "parquet": Parquet,
        "webdataset": WebDataset,
    }
    if name not in formats:
        raise BadValueError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
    return formats[name]()
