"""Grids, PNG files and pictures in a terminal."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim.runtime import open_bundle
from dim.runtime.errors import BadValueError
from dim.runtime.inspection.labelled_grid import draw_labelled_grid
from dim.runtime.inspection.preview import can_show_pictures, draw_rows, encode_png, make_grid, render_ansi, write_png


def test_a_grid_holds_every_image_in_its_place() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5, 1)
    paper = make_grid(images)
    assert paper.shape == (2 + 2 * 6, 2 + 3 * 7, 3) and paper.dtype == np.uint8
    for row in range(2):
        for column in range(3):
            part = paper[2 + row * 6 :, 2 + column * 7 :][:4, :5]
            assert np.array_equal(part, images[row, column].repeat(3, axis=2))
    assert (paper[:2] == 255).all() and (paper[:, -2:] == 255).all()
    assert make_grid(images, gap_px=0).shape == (8, 15, 3)


def test_colours_stay() -> None:
    images = np.zeros((1, 1, 2, 2, 3), np.uint8)
    images[..., 1] = 200
    assert make_grid(images)[2, 2].tolist() == [0, 200, 0]


@pytest.mark.parametrize("shape", [(1, 1, 2, 2, 2), (1, 2, 2, 1), (0, 1, 2, 2, 1), (1, 0, 2, 2, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadValueError, match="they must be uint8"):
        make_grid(np.zeros(shape, np.uint8))
    with pytest.raises(BadValueError, match="they must be uint8"):
        make_grid(np.zeros((1, 1, 2, 2, 1), np.float32))


def test_rows_are_classes_and_columns_indices(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        images = draw_rows(bundle)
        assert images.shape == (len(bundle.classes), 12, 8, 8, 1)
        for label in range(len(bundle.classes)):
            assert np.array_equal(images[label], bundle.sample([label] * 12, range(12)))


def test_a_png_holds_the_pixels(tmp_path: Path) -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    write_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read), image)
    with Image.open(io.BytesIO(encode_png(image, scale=2))) as read:
        assert np.array_equal(np.asarray(read), image.repeat(2, axis=0).repeat(2, axis=1))
    assert encode_png(image) == encode_png(image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_labelled_grid_holds_every_image_enlarged_and_nothing_in_the_gaps() -> None:
    images = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8, 1)
    picture = draw_labelled_grid(images, ["cat", "dog"], min_image_px=20)
    side, gap = 24, 3
    assert picture.shape[0] == 2 * (side + gap) + gap
    left = picture.shape[1] - (3 * (side + gap) + gap)
    for row in range(2):
        for column in range(3):
            top, begin = gap + row * (side + gap), left + gap + column * (side + gap)
            part = picture[top : top + side, begin : begin + side]
            assert np.array_equal(part[::3, ::3, :3], images[row, column].repeat(3, axis=2))
            assert (part[..., 3] == 255).all()
    assert (picture[:gap, :, 3] == 0).all() and (picture[:, -gap:, 3] == 0).all()
    names = picture[:, : left - gap, 3]
    assert names[: side + gap].any() and names[side + gap :].any()


def test_names_of_rows_are_cleaned_and_shortened() -> None:
    images = np.zeros((1, 1, 40, 40, 3), np.uint8)
    assert np.array_equal(draw_labelled_grid(images, ["a\x1b[2J"]), draw_labelled_grid(images, ["a?[2J"]))
    assert draw_labelled_grid(images, ["n" * 500]).shape[1] < 300
    assert draw_labelled_grid(images, ["a"], title="twelve").shape[0] > draw_labelled_grid(images, ["a"]).shape[0]


def test_two_rows_of_pixels_make_a_line_of_letters() -> None:
    image = np.array([[[1, 2, 3], [1, 2, 3]], [[4, 5, 6], [4, 5, 6]], [[7, 8, 9], [0, 0, 0]]], np.uint8)
    assert render_ansi(image).split("\n") == [
        "\x1b[38;2;1;2;3;48;2;4;5;6m▀▀\x1b[0m",
        "\x1b[38;2;7;8;9;48;2;7;8;9m▀\x1b[38;2;0;0;0;48;2;0;0;0m▀\x1b[0m",
    ]


def test_a_wide_image_is_shrunk_by_averaging() -> None:
    image = np.zeros((4, 200, 3), np.uint8)
    image[::2] = 100
    lines = render_ansi(image, max_columns=100).split("\n")
    assert lines == ["\x1b[38;2;50;50;50;48;2;50;50;50m" + "▀" * 100 + "\x1b[0m"]
    assert all(line.count("▀") <= 30 for line in render_ansi(image, max_columns=30).split("\n"))


def test_what_is_no_image_is_refused() -> None:
    for image, columns in (
        (np.zeros((2, 2), np.uint8), 80),
        (np.zeros((2, 2, 3)), 80),
        (np.zeros((2, 2, 3), np.uint8), 0),
    ):
        with pytest.raises(BadValueError, match="it must be uint8"):
            render_ansi(image, columns)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pictures_go_to_colour_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert can_show_pictures(Terminal())
    assert not can_show_pictures(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_show_pictures(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not can_show_pictures(Terminal())
