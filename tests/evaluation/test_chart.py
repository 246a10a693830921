"""The charts of an evaluation, by what stands in their figures."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from dim.evaluation import chart

ROWS = [
    {
        "data": "digits", "subject": subject, "source": "bundle", "mode": mode, "ipc": 10, "arch": "convnet3",
        "width": 32, "labels": "hard", "accuracy_mean": mean, "accuracy_std": 0.5,
    }
    for mode, mean in (("fixed", 62.6), ("stream", 91.0))
    for subject in ("generated", "real")
]  # fmt: skip
ONE_SEED = [row | {"accuracy_std": None} for row in ROWS]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that becomes a file."""
    kept: list[Figure] = []
    whole = chart.to_png

    def keep(figure: Figure) -> bytes:
        kept.append(figure)
        return whole(figure)

    monkeypatch.setattr(chart, "to_png", keep)
    return kept


def count_bars(figure: Figure) -> int:
    """Count the error bars, and the ticks at their ends."""
    return sum(
        len(drawn.get_segments()) + len(axes.lines)
        for axes in figure.axes
        for drawn in axes.collections
        if isinstance(drawn, LineCollection)
    )


def test_bars_of_one_seed_have_no_ticks(tmp_path: Path, figures: list[Figure]) -> None:
    chart.draw_chart(ROWS, tmp_path / "two.png")
    chart.draw_chart(ONE_SEED, tmp_path / "one.png")
    assert [count_bars(figure) > 0 for figure in figures] == [True, False]
    assert all(not axes.lines for axes in figures[1].axes)


def test_panels_of_bars_name_their_axis_once(tmp_path: Path, figures: list[Figure]) -> None:
    chart.draw_chart(ROWS, tmp_path / "bars.png")
    assert [axes.get_xlabel() for axes in figures[0].axes] == ["", "test accuracy, %"]


def test_panels_of_curves_share_one_range_and_one_label(tmp_path: Path, figures: list[Figure]) -> None:
    rows: list[Any] = [*ROWS, *({**row, "ipc": 50, "accuracy_mean": 94.0} for row in ROWS)]
    chart.draw_chart(rows, tmp_path / "curves.png")
    assert [axes.get_ylim() for axes in figures[0].axes] == [(60, 100), (60, 100)]
    labels = [axes.get_ylabel() for axes in figures[0].axes]
    assert labels == ["test accuracy, % (axis begins at 60)", "(axis begins at 60)"]
