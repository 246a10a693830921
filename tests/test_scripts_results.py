"""docs/results.md: it is what the result files say, and what was not measured says so."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_script", ROOT / "scripts" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(**changes: Any) -> dict[str, Any]:
    plain = {
        "data": "mnist", "subject": "generated", "source": "bundle", "content_id": "ab" * 32, "mode": "fixed",
        "ipc": 10, "arch": "convnet3", "width": None, "labels": "hard", "recipe": "default", "precision": "bf16",
        "epochs": 1000, "steps": 2000, "distinct_images": 100, "data_bytes": 78400,
        "accuracy_mean": 97.125, "accuracy_std": 0.25,
        "accuracies": [97, 97.25], "seeds": [0, 1], "diverged": 0, "test_images": 10000, "seconds_per_student": 61.2,
        "engine": "onnxruntime-cpu fp32 on cpu, onnxruntime 1.32.0", "machine": "a CPU, 2 cores", "threads": 1,
        "torch_version": "2.13.0", "dim_version": "0.1.0", "date": "2026-11-22 15:00 UTC",
        "data_note": "n", "protocol": "p",
    }  # fmt: skip
    return plain | changes


def results(*rows: dict[str, Any], name: str = "mnist") -> dict[str, Any]:
    data = {"name": name, "fingerprint": "cd" * 32, "note": "official files", "licence": "x", "classes": 10}
    data |= {"image": [28, 28, 1], "train_images": 60000, "test_images": 10000}
    return {"format_version": 1, "dim_version": "0.1.0", "data": data, "protocol": "p", "rows": list(rows)}


def test_the_page_in_the_repository_is_what_its_files_say(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0


def test_measured_rows_stand_beside_those_that_were_not_run(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    measured = results(
        row(),
        row(subject="real", source="real", content_id="", engine="", accuracy_mean=96.5),
        row(labels="soft", accuracy_mean=98.0, accuracy_std=None),
        row(epochs=100, steps=200, accuracy_mean=90.0, width=32),
        row(source="whole", subject="whole set", mode="whole", ipc=0, epochs=20, accuracy_mean=99.6),
    )
    (folder / "mnist.json").write_text(json.dumps(measured))
    (folder / "photos.json").write_text(json.dumps(results(row(data="photos"), name="photos")))
    assert script.main(["--docs", str(tmp_path), "--check"]) == 1
    assert script.main(["--docs", str(tmp_path)]) == 0
    assert script.main(["--docs", str(tmp_path), "--check"]) == 0
    page = (tmp_path / "results.md").read_text()
    assert "| convnet3 | generated | not run | 97.12 ± 0.25 | not run | not run | not run |" in page
    assert "| convnet3 | real | not run | 96.50 ± 0.25 | not run | not run | not run |" in page
    assert "| convnet3 | generated, soft labels | not run | 98.00 (one seed) | not run | not run | not run |" in page
    assert "| vgg11 | generated | not run | not run | not run | not run | not run |" in page
    assert "100 epochs, a shortened protocol (1,000 in full)" in page
    assert "The whole training split, convnet3, 20 epochs, default recipe: 99.60 ± 0.25 %." in page
    assert "## CIFAR-10\n\nNot run." in page and "## photos" in page
    assert "official files. SHA-256 cdcdcdcdcdcdcdcd." in page and "a CPU, 2 cores, 1; torch 2.13.0" in page
    assert (folder / "mnist.png").read_bytes().startswith(b"\x89PNG")


def test_two_bundles_are_told_apart_and_two_measurements_of_one_are_refused(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(results(row())))
    (folder / "b.json").write_text(json.dumps(results(row(content_id="ef" * 32, accuracy_mean=50.0))))
    script.main(["--docs", str(tmp_path)])
    page = (tmp_path / "results.md").read_text()
    assert "| generated (abababab) | not run | 97.12 ± 0.25 |" in page
    assert "| generated (efefefef) | not run | 50.00 ± 0.25 |" in page
    (folder / "b.json").write_text(json.dumps(results(row(accuracy_mean=50.0))))
    with pytest.raises(SystemExit, match=r"^Two files measure mnist, generated, convnet3, fixed, IPC 10, hard labels"):
        script.main(["--docs", str(tmp_path)])


def test_a_file_of_another_kind_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"x\.json is not a results\.json of dim eval"):
        script.main(["--docs", str(tmp_path)])
