"""Options for reading a dataset, shared by `dim distill` and `dim eval`."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim.cli.options import complete_from
from dim.runtime.errors import BadValueError

if TYPE_CHECKING:
    from dim.data.options import DataOptions

DATA_HELP = (
    "A known set (digits, mnist, fashion-mnist, svhn, cifar10, cifar100), a folder, archive or file, a set that dim "
    "generate wrote, a bundle, hf://USER/NAME, or the https:// address of an archive; repeat it to unite several."
)
_LAYOUTS = ("auto", "classes", "splits/classes", "classes/splits", "groups/classes")
_READING, _PREFIX = "reading", "reading_"
Command = Callable[..., None]

DataDirOption = Annotated[
    Path | None, typer.Option(envvar="DIM_DATA", help="Where the official files are, or go when downloaded.")
]
_option = partial(typer.Option, rich_help_panel="Reading the data")
_sha256_option = partial(_option, help="Of the archive behind an https:// address.", metavar="HASH")

_FLAGS = {
    "skip_unreadable": Annotated[
        bool | None, _option("--skip-unreadable", help="Leave out images that cannot be read.")
    ],
    "layout": Annotated[
        str | None,
        _option(
            "--layout",
            help="Where classes lie in a tree of images: classes, splits/classes, classes/splits, or groups/classes "
            "(folders of one name in every top folder are one class); auto, which finds out, if left out.",
            autocompletion=complete_from(*_LAYOUTS),
        ),
    ],
    "bits": Annotated[int | None, _option("--bits", help="Bits that 16-bit images use, 8 to 16; found if left out.")],
    "follow_links": Annotated[
        bool | None, _option("--follow-links", help="Follow symbolic links that leave the folder.")
    ],
    "image_column": Annotated[
        str | None,
        _option(
            "--image-column",
            help="Column of the images or file names in a table or Hugging Face dataset.",
            metavar="NAME",
        ),
    ],
    "label_column": Annotated[str | None, _option("--label-column", help="Column of the labels.", metavar="NAME")],
    "split": Annotated[
        str | None,
        _option(
            "--split",
            help="Splits to read, where the source names splits; those called train and test if left out.",
            metavar="TRAIN[,TEST]",
        ),
    ],
    "sha256": Annotated[str | None, _sha256_option("--sha256")],
    "replay_ipc": Annotated[
        int | None, _option("--replay-ipc", help="Images per class to draw from a bundle; 1000 if left out.")
    ],
}
"""Options by the fields of `dim.data.options.DataOptions`; None where one is not given."""


def make_data_options(**given: Any) -> "DataOptions":
    """Make the options of reading data from what was typed; what is not given has its default.

    Raises:
        BadValueError: a value is out of range; the option is named as it was typed.
    """
    from dim.data.options import DataOptions

    try:
        return DataOptions(**given)
    except BadValueError as error:
        field, _, rest = str(error).partition(" ")
        raise BadValueError(f"--{field.replace('_', '-')} {rest}") from None


def takes_data_options(command: Command) -> Command:
    """Give a command the options above in place of its parameter `reading`, which gets those that were given.

    Where a command has a `--sha256` of its own, that of the data is `--data-sha256`.
    """
    own = inspect.signature(command).parameters
    flags = _FLAGS | ({"sha256": Annotated[str | None, _sha256_option("--data-sha256")]} if "sha256" in own else {})
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name == _READING:
            parameters += [
                inspect.Parameter(_PREFIX + field, parameter.kind, default=None, annotation=hint)
                for field, hint in flags.items()
            ]
        else:
            parameters.append(parameter)

    @wraps(command)
    def run(**given: Any) -> None:
        reading = {field: value for field in flags if (value := given.pop(_PREFIX + field, None)) is not None}
        make_data_options(**reading)  # told before anything is read
        command(**given, **{_READING: reading})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
