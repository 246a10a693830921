"""`dim.view` and `dim view`: real images beside a bundle, the browser, and sentences where something is missing."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import dim as run_dim
from fresh_interpreter import imported_by

import dim
from dim.cli.options import open_report
from dim.data.image_set import ImageSet
from dim.gallery import SourceImages
from dim.runtime.errors import BadValueError
from dim.runtime.gallery.browser import open_in_browser

CLASSES = ("zero", "one", "two")


def source(classes: tuple[str, ...] = CLASSES, count: int = 9000) -> ImageSet:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(count) % len(classes)
    return ImageSet(
        name="tiny",
        classes=classes,
        train_images=images,
        train_labels=labels,
        test_images=images[:3],
        test_labels=labels[:3],
        licence="",
        note="",
    )


def test_the_nearest_images_are_those_of_a_slow_search() -> None:
    data = source()
    image = np.random.default_rng(4).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    distances = [float(np.sqrt(((row.astype(float) - image) ** 2).mean())) for row in data.train_images]
    order = sorted(range(len(distances)), key=distances.__getitem__)[:5]
    found = SourceImages(data).nearest(image, 5)
    assert [neighbour.distance for neighbour in found] == pytest.approx([distances[row] for row in order], rel=1e-5)
    assert [neighbour.label for neighbour in found] == [row % 3 for row in order]
    (itself, *_) = SourceImages(data).nearest(data.train_images[8500], 2)
    assert itself.distance == 0 and np.array_equal(itself.image, data.train_images[8500])


def test_the_first_images_of_a_class() -> None:
    data = source()
    assert np.array_equal(SourceImages(data).first(2, 3), data.train_images[[2, 5, 8]])
    assert len(SourceImages(data).first(2, 10**6)) == 3000


def test_view_serves_a_bundle_with_data(tiny_bundle: Path) -> None:
    said: list[str] = []
    with dim.view(tiny_bundle, source(), browser=False, say=said.append) as gallery:
        assert said == [f"Gallery: {gallery.url}"]
        with urllib.request.urlopen(f"{gallery.url}nearest.json?labels=1&start=4") as answer:
            neighbours = json.load(answer)["neighbours"]
    assert len(neighbours) == 6 and neighbours == sorted(neighbours, key=lambda each: each["distance"])


def test_other_data_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BadValueError, match="draws the classes 'zero', 'one', 'two', but tiny has 'a', 'b'"):
        dim.view(tiny_bundle, source(("a", "b")), browser=False)


def test_a_browser_is_opened_where_there_is_a_display(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    with dim.view(tiny_bundle) as gallery:
        assert opened == [gallery.url]


def test_without_a_browser_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    said: list[str] = []
    open_in_browser("http://127.0.0.1:1/", said.append)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    open_in_browser("http://127.0.0.1:1/", said.append)
    assert said == ["No browser was found here: open the address yourself."] * 2


def test_a_report_is_opened_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    open_report(tmp_path)
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert capsys.readouterr().err == f"Report: {opened[0]}\n"


def test_a_notebook_gets_no_browser(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> bool:
        raise AssertionError(address)

    monkeypatch.setattr(webbrowser, "open", refuse)
    monkeypatch.setattr("dim.gallery.is_notebook", lambda: True)
    monkeypatch.setenv("DISPLAY", ":0")
    with dim.view(tiny_bundle) as gallery:
        assert "<iframe" in gallery._repr_html_()


def test_the_gallery_loads_no_torch() -> None:
    loaded = imported_by("import dim; dim.view; import dim.runtime.gallery.server, dim.runtime.gallery.report")
    assert "torch" not in loaded and "dim.data" not in loaded


def start(*arguments: str, **options: Any) -> tuple[subprocess.Popen[str], str]:
    """Start `dim view` and wait for the address."""
    command = [sys.executable, "-m", "dim", "view", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"Gallery: (http://127\.0\.0\.1:\d+/\S+/)$", line):
            return process, found[1]
    raise AssertionError("no address was printed")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_serves_until_it_is_stopped(tiny_bundle: Path, number: signal.Signals, code: int) -> None:
    process, address = start(str(tiny_bundle), "--no-browser")
    with process:
        with urllib.request.urlopen(f"{address}images.png?labels=0") as answer:
            assert answer.read(4) == b"\x89PNG"
        process.send_signal(number)
        try:
            assert process.wait(30) == code
        finally:
            process.kill()


def test_a_bundle_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    done = run_dim("view", str(tmp_path / "none.dim"))
    assert done.code == 1 and done.err.count("\n") == 1
    assert done.err.startswith("Error: There is no bundle at ")


def test_a_port_in_use_is_one_sentence(tiny_bundle: Path) -> None:
    with dim.view(tiny_bundle, browser=False) as gallery:
        port = gallery.url.split(":")[2].split("/")[0]
        done = run_dim("view", str(tiny_bundle), "--no-browser", "--port", port)
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        f"Error: Port {port} is in use: choose another, or leave it out for any free one."
    )


@pytest.mark.slow
def test_no_engine_is_told_on_the_page(tiny_bundle: Path) -> None:
    hidden = "import sys; sys.modules['onnxruntime'] = None; sys.modules['openvino'] = None\n"
    code = f"{hidden}from dim.cli.main import main\nmain(['view', {str(tiny_bundle)!r}, '--no-browser'])"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    with process:
        address = next(line.split()[1] for line in process.stderr if line.startswith("Gallery: "))
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}images.png")
        sentence = json.load(refused.value)["error"]
        process.terminate()
        process.wait(30)
    assert "pip install 'dim-distill[cpu]'" in sentence
