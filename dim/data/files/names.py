"""What the names of files and folders say: which are images, and which nobody meant to be there."""

EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm") + (".tif", ".tiff")
)
"""Names by which image files are known."""

_PASSED_OVER = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "$recycle.bin")
    + ("lost+found", "system volume information")
)


def extension_of(path: str) -> str:
    """Return a file's extension in small letters with its dot, "" where it has none."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return "." + suffix.lower() if dot and stem else ""


def is_passed_over(path: str) -> bool:
    """Whether a path is hidden, or what a file manager or a storage device left behind."""
    return any(part.startswith(".") or part.casefold() in _PASSED_OVER for part in path.split("/"))
