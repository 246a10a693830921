"""How a dataset is read: the options that `dim distill` and `dim eval` share, spelled and explained once."""

from typing import Annotated

import typer

from dim.cli.options import complete_from

DATA_PANEL = "Reading the data"
SkipUnreadableOption = Annotated[
    bool,
    typer.Option("--skip-unreadable", help="Leave out images that cannot be read.", rich_help_panel=DATA_PANEL),
]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        help="Where classes lie in a tree of images: auto, classes, splits/classes, classes/splits, or groups/classes "
        "(folders of one name in every top folder are one class).",
        rich_help_panel=DATA_PANEL,
        autocompletion=complete_from("auto", "classes", "splits/classes", "classes/splits", "groups/classes"),
    ),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", help="Bits that 16-bit images use, 8 to 16; found if left out.", rich_help_panel=DATA_PANEL),
]
FollowLinksOption = Annotated[
    bool,
    typer.Option("--follow-links", help="Follow symbolic links that leave the folder.", rich_help_panel=DATA_PANEL),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        metavar="NAME",
        help="Column of the images or file names in a table or Hugging Face dataset.",
        rich_help_panel=DATA_PANEL,
    ),
]
LabelColumnOption = Annotated[
    str | None, typer.Option("--label-column", metavar="NAME", help="Column of the labels.", rich_help_panel=DATA_PANEL)
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="TRAIN[,TEST]",
        help="Splits to read, where the source names splits; those called train and test if left out.",
        rich_help_panel=DATA_PANEL,
    ),
]
ReplayIpcOption = Annotated[
    int, typer.Option("--replay-ipc", help="Images per class to draw from a bundle.", rich_help_panel=DATA_PANEL)
]
DATA_HELP = (
    "A known set (digits, mnist, fashion-mnist, svhn, cifar10, cifar100), a folder, archive or file, a set that dim "
    "generate wrote, a bundle, hf://USER/NAME, or the https:// address of an archive; repeat it to unite several."
)
