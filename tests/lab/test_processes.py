"""lab/processes.py: two processes of a CPU do what one does, and the page says what was measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lab.pages.distilling import processes_section

BENCH = Path(__file__).parents[2] / "lab"
SHORT = ["--preset", "tiny", "--image-px", "8", "--batch", "32", "--lines", "2", "--log-steps", "1"]


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("processes")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(
    bench: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report.json"
    given = [*SHORT, "--rounds", "1", "--autocast", "off", "--device", "cpu", "--out", str(out)]
    assert bench.main(given) == 0
    report = json.loads(out.read_text())
    assert report["processes"] == 2 and report["batch"] == 32 and report["device"] == "cpu"
    assert 0 < report["first_loss_difference"] < 1e-4  # two processes round otherwise, and do the same
    assert [row["stage"] for row in report["rows"]] == ["stage1", "stage2"]
    for row in report["rows"]:
        assert row["ratio"] == pytest.approx(row["several_images_per_s"] / row["one_images_per_s"])
    printed = capfd.readouterr().out.splitlines()
    assert printed[0].startswith("stage1: one process ") and printed[-1].startswith("first losses differ by ")
    lines = processes_section({"processes-cpu": report})
    assert not any("not run" in line for line in lines)
    assert "| stage | one process | 2 processes | times as fast | range |" in lines


def test_ratios_are_taken_within_a_round_and_without_the_first_line(bench: ModuleType) -> None:
    def ran(loss: float, *speeds: float) -> dict[str, Any]:
        return {"speeds": dict.fromkeys(bench.STAGES, list(speeds)), "batch": 8, "line": {"a": loss, "b": 0.0}}

    one = [ran(1.0, 1, 10, 10), ran(1.0, 1, 20, 20), ran(1.0, 1, 40, 40)]
    several = [ran(1.0, 1, 30, 30), ran(1.5, 1, 40, 40), ran(1.0, 1, 40, 40)]
    report = bench.summarise(one, several)
    assert report["first_loss_difference"] == 0.5
    for row in report["rows"]:
        assert (row["one_images_per_s"], row["several_images_per_s"]) == (20, 40)
        assert (row["ratio"], row["least"], row["most"]) == (2, 1, 3)


def test_too_few_gpus_are_one_sentence(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit, match="^There is one GPU here; several processes need one each.$"):
        bench.main(SHORT)
    with pytest.raises(SystemExit, match="^GPUs here: 1, fewer than 2 processes; each needs its own.$"):
        bench.main([*SHORT, "--processes", "2"])


@pytest.mark.slow
def test_a_process_that_fails_ends_the_benchmark(bench: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^1 process.es. ended with exit code 1.$"):
        bench.main([*SHORT, "--rounds", "1", "--device", "cpu", "--batch", "5"])
    assert "stage1.batch_size is 5; it must be a multiple of" in capfd.readouterr().err
