"""Reports: one file, text as text, within its size."""

import re
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table as RichTable
from rich.text import Text

from dim.runtime.errors import OutputError
from dim.runtime.gallery.report import (
    MAX_REPORT_BYTES,
    Picture,
    Table,
    read_rich_table,
    render_report,
    write_report,
)
from dim.runtime.inspection.preview import encode_png


def picture(title: str, side: int) -> Picture:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Picture(title=title, png=encode_png(pixels), description=f"Noise called {title}")


def test_a_report_is_one_file_without_scripts_or_addresses(tmp_path: Path) -> None:
    table = Table(title="Numbers", columns=("name", "value"), rows=[("a", "1")], numbers=("value",), note="In all.")
    write_report(tmp_path / "new" / "report.html", "A report", ["Some words.", table, picture("noise", 8)])
    page = (tmp_path / "new" / "report.html").read_text()
    assert "<script" not in page and "://" not in page and " style=" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page and "unsafe" not in page
    assert '<td class="number">1</td>' in page and "<p>Some words.</p>" in page and "In all." in page
    assert 'alt="Noise called noise"' in page


def test_what_strangers_wrote_is_text() -> None:
    bad = '<script>alert("1")</script><img src=x onerror=alert(1)>\x1b[2J'
    table = Table(title=bad, columns=(bad,), rows=[(bad,)], note=bad)
    page = render_report(bad, [bad, table, Picture(title=bad, png=b"", description=bad)]).decode()
    assert "<script>" not in page and "<img src=x" not in page and "\x1b" not in page
    assert page.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;") >= 8


def test_pictures_that_do_not_fit_are_named() -> None:
    page = render_report("Large", [picture("first", 500), picture("second", 700), picture("third", 100)])
    assert len(page) < MAX_REPORT_BYTES
    text = page.decode()
    assert 'alt="Noise called first"' in text and 'alt="Noise called third"' in text
    assert re.search(r'The picture "second" \(1\.\d\d MB\) is too large for this page\.', text)


def test_many_rows_are_cut() -> None:
    page = render_report("Rows", [Table(title="Rows", columns=("n",), rows=[(str(n),) for n in range(700)])])
    assert b"<td>499</td>" in page and b"<td>500</td>" not in page and b"200 more rows are not shown." in page


def test_a_rich_table_becomes_one() -> None:
    rich = RichTable(title=Text("Accuracy"), caption="Mean.")
    rich.add_column("network")
    rich.add_column(Text("real"), justify="right")
    rich.add_row("convnet3", Text("99.1", "green"))
    table = read_rich_table(rich)
    assert (table.title, table.note, table.columns, table.numbers) == (
        "Accuracy",
        "Mean.",
        ["network", "real"],
        ["real"],
    )
    assert table.rows == [("convnet3", "99.1")]


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"The report .*report\.html cannot be written: "):
        write_report(tmp_path / "file" / "report.html", "A report", [])
