"""A report as one HTML file: text, tables and pictures inside it, nothing loaded from elsewhere, no script."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dim.runtime.errors import OutputError, describe_error, printable
from dim.runtime.gallery.pictures import to_data_address
from dim.runtime.storage.below import replace_file
from dim.runtime.units import format_units

REPORT_NAME = "report.html"
MAX_REPORT_BYTES = 2_000_000
_MAX_ROWS = 500
_STYLE = Path(__file__).with_name("page") / "style.css"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()
    """The columns that are aligned to the right."""
    note: str = ""
    """A sentence below it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG file."""

    title: str
    png: bytes
    description: str
    """For those who do not see it."""


Part = Table | Picture | str
"""What a report is made of; a text is a paragraph."""


def read_rich_table(table: Any) -> Table:
    """Read a `rich.table.Table`, as a terminal shows it, for a report."""
    columns = [" ".join(str(column.header).split()) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return Table(
        title=str(table.title or ""),
        columns=columns,
        rows=list(zip(*cells, strict=True)),
        numbers=[name for name, column in zip(columns, table.columns, strict=True) if column.justify == "right"],
        note=str(table.caption or ""),
    )


def write_report(path: Path, title: str, parts: Sequence[Part]) -> None:
    """Write a report that appears whole, in less than `MAX_REPORT_BYTES`.

    Pictures that do not fit are left out, the last ones first to go, and a sentence says so.

    Args:
        path: the HTML file.
        title: its heading.
        parts: in their order; whatever strangers wrote in them is shown as text.

    Raises:
        OutputError: the disk refused.
    """
    page = render_report(title, parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.parent, path.name, page)
    except OSError as error:
        raise OutputError(f"The report {path} cannot be written: {describe_error(error)}.") from error


def render_report(title: str, parts: Sequence[Part]) -> bytes:
    """Write a report as the bytes of a page; arguments as `write_report`."""
    style = _STYLE.read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n"
        f"<header><h1>{_text(title)}</h1></header>\n"
        '<main class="report">\n'
    )
    foot = "</main>\n</html>\n"
    texts = ["" if isinstance(part, Picture) else _render(part) for part in parts]
    left = MAX_REPORT_BYTES - sum(len(text.encode()) for text in (head, foot, *texts))
    for number, part in enumerate(parts):
        if isinstance(part, Picture):
            texts[number] = _render_picture(part, left)
            left -= len(texts[number].encode())
    return "".join((head, *texts, foot)).encode()


def _render(part: Table | str) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>\n"
    numbers = [column in part.numbers for column in part.columns]
    heads = "".join(_cell("th", column, right) for column, right in zip(part.columns, numbers, strict=True))
    rows = "".join(
        f"<tr>{''.join(_cell('td', cell, right) for cell, right in zip(row, numbers, strict=True))}</tr>\n"
        for row in part.rows[:_MAX_ROWS]
    )
    cut = len(part.rows) - _MAX_ROWS
    notes = [part.note] * bool(part.note) + [f"{cut:,} more rows are not shown."] * (cut > 0)
    below = "".join(f'<p class="muted">{_text(note)}</p>' for note in notes)
    return (
        f'<section><h2>{_text(part.title)}</h2><div class="table"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>{below}</section>\n"
    )


def _render_picture(picture: Picture, most_bytes: int) -> str:
    image = f'<img src="{to_data_address(picture.png)}" alt="{_text(picture.description)}">'
    section = f"<section><h2>{_text(picture.title)}</h2>{image}</section>\n"
    # Room for the sentences of pictures that are left out.
    if len(section.encode()) + 4096 <= most_bytes:
        return section
    size = format_units(len(picture.png), "B")
    return f'<p class="muted">The picture "{_text(picture.title)}" ({size}) is too large for this page.</p>\n'


def _cell(tag: str, text: str, right: bool) -> str:
    mark = ' class="number"' if right else ""
    return f"<{tag}{mark}>{_text(text)}</{tag}>"


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
