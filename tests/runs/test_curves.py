"""The chart of a run's training: one panel per quantity, both stages on one axis of steps, readable anywhere."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dim.chart_style import GENERATED, REAL, Label, draw_means, label_ends, make_figure, share_percents, to_png
from dim.runs import curves
from dim.runs.curves import curves_png

LINES = [
    {"stage": stage, "step": step, "real_logit": 0.5, "fake_logit": -0.5, "r1": 0.1 * step}
    | ({"matching_loss": 1 / step} if stage == "stage2" else {"new_metric": 2.0})
    for stage in ("stage1", "stage2")
    for step in (10, 20, 30)
]
METRICS = "".join(json.dumps(line) + "\n" for line in LINES)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, as matplotlib holds them."""
    kept = []

    def keep(*arguments, **named):
        kept.append(make_figure(*arguments, **named))
        return kept[-1]

    monkeypatch.setattr(curves, "make_figure", keep)
    return kept


def test_every_quantity_has_a_panel_of_its_own(figures):
    curves_png(METRICS.encode())
    [(_, panels)] = figures
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["discriminator's output", "R1, squared gradient", "matching loss", "new metric"]
    assert all("Good:" in axes.get_xlabel() for axes in panels[:3])


def test_stage_2_follows_stage_1(figures):
    curves_png(METRICS.encode())
    [(_, panels)] = figures
    assert list(panels[0].get_lines()[0].get_xdata()) == [10, 20, 30, 40, 50, 60]
    assert list(panels[2].get_lines()[0].get_xdata()) == [40, 50, 60]


def test_a_single_point_is_seen(figures):
    curves_png((json.dumps(LINES[0]) + "\n").encode())
    [(_, panels)] = figures
    assert {line.get_marker() for axes in panels for line in axes.get_lines()} == {"o"}


def test_no_line_runs_through_the_name_of_a_stage(figures):
    curves_png("".join(json.dumps({**line, "r1": 1.0}) + "\n" for line in LINES).encode())
    [(figure, panels)] = figures
    for axes in panels:
        [name] = [text for text in axes.texts if text.get_text() == " stage 2"]
        bottom = axes.transData.inverted().transform(name.get_window_extent(figure.canvas.get_renderer()))[0][1]
        highest = max(max(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) > 2)
        assert highest < bottom


def test_real_and_generated_have_their_colours_and_names_at_the_lines(figures):
    curves_png(METRICS.encode())
    [(_, panels)] = figures
    assert [line.get_color() for line in panels[0].get_lines()[:2]] == [REAL, GENERATED]
    written = {text.get_text(): text.get_color() for text in panels[0].texts}
    assert written["real"] == REAL and written["generated"] == GENERATED
    assert panels[0].get_legend() is None


def test_the_ground_is_transparent():
    picture = np.asarray(Image.open(io.BytesIO(curves_png(METRICS.encode()))))
    assert picture.shape[2] == 4
    assert (picture[..., 3] == 0).mean() > 0.8


def test_names_at_lines_do_not_overlap():
    figure, [axes] = make_figure(1)
    axes.set_ylim(0, 1)
    label_ends(axes, [Label(name, REAL, 1.0, 0.5) for name in "abc"])
    heights = sorted(text.xy[1] for text in axes.texts)
    assert np.diff(heights).min() > 0.07
    assert np.mean(heights) == pytest.approx(0.5)
    assert to_png(figure)[:4] == b"\x89PNG"


def test_a_cropped_axis_says_where_it_begins():
    from dim.chart_style import name_axes

    _, (cropped, whole) = make_figure(2)
    cropped.set_ylim(91, 99)
    whole.set_ylim(0, 99)
    for axes in (cropped, whole):
        name_axes(axes, "", "", "accuracy, %")
    assert cropped.get_ylabel() == "accuracy, % (axis begins at 91)"
    assert whole.get_ylabel() == "accuracy, %"


def test_means_of_one_seed_have_no_bar():
    _, [axes] = make_figure(1)
    draw_means(axes, (1, 10, 50), (90.0, 95.0, 96.0), (0.5, None, 1.0), REAL)
    assert axes.lines[0].get_xydata().tolist() == [[1, 90], [10, 95], [50, 96]]
    (bars,) = axes.collections
    assert [segment.tolist() for segment in bars.get_segments()] == [[[1, 89.5], [1, 90.5]], [[50, 95], [50, 97]]]


def test_panels_of_percents_share_a_range_of_whole_tens():
    _, panels = make_figure(2)
    panels[0].plot([1, 2], [43.9, 97.0])
    panels[1].plot([1, 2], [98.3, 99.9])
    share_percents(panels)
    assert [axes.get_ylim() for axes in panels] == [(40, 100), (40, 100)]
