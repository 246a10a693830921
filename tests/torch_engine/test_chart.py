"""The benchmark's chart is drawn from its JSON, and is the same for the same numbers."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from dim.runtime.errors import MissingExtraError
from dim.torch_engine.chart import draw_bench_chart

REPORT = {
    "results": [
        {"engine": engine, "precision": "fp32", "device": "cpu", "batch": batch, "images_per_s": 100.0 * batch}
        for engine in ("onnxruntime-cpu", "torch-eager")
        for batch in (64, 1)
    ],
    "gpu": None,
    "machine": "Linux x86_64, some processor",
    "cores": 2,
    "gflop_per_image": 0.734,
}


def test_a_chart_is_drawn_the_same_twice(tmp_path: Path) -> None:
    draw_bench_chart(json.loads(json.dumps(REPORT)), tmp_path / "charts" / "a.png")
    draw_bench_chart(REPORT, tmp_path / "charts" / "b.png")
    with Image.open(tmp_path / "charts" / "a.png") as chart:
        assert chart.size == (832, 572) and chart.mode == "RGBA"
    assert (tmp_path / "charts" / "a.png").read_bytes() == (tmp_path / "charts" / "b.png").read_bytes()


def test_nothing_measured_is_an_empty_chart(tmp_path: Path) -> None:
    draw_bench_chart({**REPORT, "results": []}, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="'matplotlib' is not installed and is needed to draw charts"):
        draw_bench_chart(REPORT, tmp_path / "a.png")
