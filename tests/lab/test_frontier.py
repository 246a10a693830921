"""Accuracy over bytes: which rows and quotes are drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.frontier import QUOTES, draw_frontier, main, read_measured, read_quotes, write_table


def row(source: str, accuracy: float, size: int, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": source, "subject": "generated" if source == "bundle" else source, "accuracy_mean": accuracy,
        "data_bytes": size, "mode": "stream", "ipc": 10, "arch": "convnet3", "width": None, "labels": "hard",
        "recipe": "condensation", "epochs": 1000, "engine_precision": "fp32" if source == "bundle" else None,
    }  # fmt: skip
    return fields | changes


def test_one_point_per_precision_size_and_archive(tmp_path: Path) -> None:
    rows = [
        row("bundle", 60, 9_000_000),
        row("bundle", 63, 9_100_000),
        row("bundle", 62, 4_900_000, engine_precision="fp16"),
        row("bundle", 66, 9_000_000, ipc=50),
        row("bundle", 70, 9_000_000, width=32),
        row("bundle", 71, 1, labels="soft"),
        row("bundle", 30, 30_720, mode="fixed", ipc=1),
        row("bundle", 50, 307_200, mode="fixed"),
        row("archive", 64, 4_800_000),
        row("real", 68, 150_000_000),
        row("bundle", 99, 5, subject="no matching"),
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": rows}))
    curves = read_measured([path], arch="convnet3", recipe="condensation", epochs=1000, ipc=10)
    assert {curve.name: curve.points for curve in curves} == {
        "bundle, stream": ((4_900_000, 62), (9_100_000, 63)),
        "bundle, fixed set": ((30_720, 30), (307_200, 50)),
        "real images, best archive": ((4_800_000, 64),),
    }
    (narrow,) = read_measured([path], arch="convnet3", recipe="condensation", epochs=1000, ipc=10, width=32)
    assert (narrow.name, narrow.points) == ("bundle, stream, width 32", ((9_000_000, 70),))
    table = write_table(curves, num_classes=10)
    assert (
        "| bundle, stream | 4.9 MB | 3,920,000 | 62.0 | measured: convnet3, recipe condensation, 1,000 epochs |"
        in table
    )


def test_every_quote_has_its_protocol_and_source() -> None:
    for described in json.loads(QUOTES.read_text()).values():
        curves = read_quotes(described)
        assert len(curves) == len(described["quoted"])
        for curve in curves:
            assert len(curve.note) > 40 and curve.points == tuple(sorted(curve.points))
            assert all(size > 1000 and 10 <= accuracy <= 100 for size, accuracy in curve.points)
        assert draw_frontier(curves, described["title"]).startswith(b"\x89PNG")


def test_an_unknown_dataset_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", "nowhere", "--out", str(tmp_path / "x.png")])
    assert "lab/quotes.json knows cifar10, mnist, not nowhere" in capsys.readouterr().err
