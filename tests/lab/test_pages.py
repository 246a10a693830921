"""lab/all-results.md: it is what the result files say, and no more."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dim.runtime.bundle_format.files import load_manifest
from lab.pages.distilling import ABLATION_MARKS
from lab.pages.evaluation import CONTROLS, evaluation_sections
from lab.pages.summary import (
    SUMMARIES,
    make_summary,
    render_archives,
    render_few,
    render_reference,
    render_table,
    write_summaries,
)
from lab.reproduce import RIVALS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield load_script()


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_script", ROOT / "lab" / "pages" / "results.py")
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


def results(*rows: dict[str, Any], name: str = "mnist", **changes: Any) -> dict[str, Any]:
    data = {"name": name, "fingerprint": "cd" * 32, "note": "official files", "licence": "x", "classes": 10}
    data |= {"image": [28, 28, 1], "train_images": 60000, "test_images": 10000} | changes
    return {"format_version": 1, "dim_version": "0.1.0", "data": data, "protocol": "p", "rows": list(rows)}


def test_the_page_in_the_repository_is_what_its_files_say(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0


def test_results_show_the_protocol_of_a_table_and_bundles_of_the_repository_only() -> None:
    summary = SUMMARIES[0]
    own = load_manifest(ROOT / summary.bundle).content_id
    shape = {"recipe": summary.recipe, "mode": "stream", "ipc": 1, "content_id": own, "accuracy_mean": 98.5}
    rows = [
        row(**shape),
        row(**shape | {"content_id": "ab" * 32, "ipc": 10}),
        row(**shape | {"recipe": "other", "ipc": 50}),
        row(**shape | {"subject": "real", "content_id": "", "accuracy_mean": 98.75, "accuracy_std": None}),
    ]
    lines = render_table(summary, rows).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert lines == [
        "| network | images per class | `stream` | real, equal steps |",
        "|---|---:|---:|---:|",
        "| convnet3 | 1 | 98.50 ± 0.25 | 98.75 (one seed) |",
    ]
    with pytest.raises(ValueError, match="lacks the mark <!-- mnist begins -->"):
        write_summaries("# Results", rows)


def test_archives_and_few_real_images_have_tables() -> None:
    avif = {"codec": "avif", "quality": 20, "images_per_class": 4013, "max_bytes": 2_530_289}
    lossless = {"codec": "webp-lossless", "quality": 100, "images_per_class": 601, "max_bytes": 923_939}
    drawn = {"source": "bundle", "content_id": "ab", "engine_precision": "fp32", "data_bytes": 2_530_289}
    kept = {"source": "archive", "content_id": "", "subject": "archive", "archive": avif, "data_bytes": 2_400_000}
    rows = [
        row(**drawn | {"subject": "generated, int8", "engine_precision": "int8", "data_bytes": 923_939}),
        row(**drawn),
        row(**drawn | {"content_id": "cd", "subject": "generated, fp16"}),
        row(**kept | {"accuracy_mean": 97.5}),
        row(**kept | {"subject": "archive, int8", "archive": lossless, "accuracy_std": None}),
        row(source="few", subject="5 % real", real_percent=5.0),
        row(source="few", subject="1 % real", real_percent=1.0, accuracy_mean=90.0),
        row(source="mixed", subject="1 % real + generated", real_percent=1.0),
    ]
    assert render_archives(rows, "ab").replace("\N{NO-BREAK SPACE}", " ").splitlines()[2:] == [
        "| fp32 | 2.5 MB | 97.12 ± 0.25 | 97.50 ± 0.25 | 4,013, AVIF of quality 20 |",
        "| int8 | 924 kB | 97.12 ± 0.25 | 97.12 (one seed) | 601, lossless WebP |",
    ]
    assert render_few(rows).replace("\N{NO-BREAK SPACE}", " ").splitlines()[2:] == [
        "| 1 % | 90.00 ± 0.25 | 97.12 ± 0.25 |"
    ]


def test_the_protocol_of_the_reference_code_has_a_table() -> None:
    shape = {"mode": "stream", "recipe": "reference", "recipe_settings": {"batch_size": 25}, "steps": 4000}
    rows = [
        row(**shape, data="cifar10"),
        row(**shape, data="cifar10", subject="real", source="real", accuracy_std=None),
        row(**shape),
        row(**shape, subject="real", source="real"),
        row(**shape, ipc=50),
    ]
    assert render_reference(rows).replace("\N{NO-BREAK SPACE}", " ").splitlines()[2:] == [
        "| MNIST | 10 | 4,000 | 25 | 97.12 ± 0.25 | 97.12 ± 0.25 |",
        "| CIFAR-10 | 10 | 4,000 | 25 | 97.12 ± 0.25 | 97.12 (one seed) |",
    ]


def test_few_real_images_have_a_table_and_archives_say_how_they_are_coded(script: ModuleType, tmp_path: Path) -> None:
    avif = {"codec": "avif", "quality": 20, "images_per_class": 4013, "max_bytes": 2_530_289}
    kept = {"source": "archive", "subject": "archive", "content_id": "", "archive": avif, "images_per_class": 4013}
    measured = [
        row(mode="stream"),
        row(mode="stream", **kept),
        row(mode="stream", source="few", subject="1 % real", content_id="", real_percent=1.0, accuracy_mean=90.0),
        row(mode="stream", source="mixed", subject="1 % real + generated", real_percent=1.0),
        row(mode="stream", subject="preset-small", content_id="ef" * 32, generators=2),
    ]
    page = written(script, tmp_path, a=results(*measured))
    assert "| convnet3 | 10 | 1 % | 90.00 ± 0.25 | 97.12 ± 0.25 |" in page
    assert "| archive (AVIF of quality 20, 4,013 images per class) | convnet3 | stream |" in page
    assert "| convnet3 | preset-small | 97.12 ± 0.25 (2 generators) |" in page


def test_the_page_of_results_is_short_and_names_no_bundle_from_elsewhere() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert len(page.splitlines()) <= 150 and not re.search(r"\b[0-9a-f]{8}\b", page)


def test_every_measured_row_is_there_and_no_other(script: ModuleType, tmp_path: Path) -> None:
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
    photos = [row(data="photos", ipc=ipc) for ipc in (1, 10)]
    (folder / "photos.json").write_text(json.dumps(results(*photos, name="photos")))
    assert script.main(["--lab", str(tmp_path), "--check"]) == 1
    assert script.main(["--lab", str(tmp_path)]) == 0
    assert script.main(["--lab", str(tmp_path), "--check"]) == 0
    page = (tmp_path / "all-results.md").read_text()
    assert "| network | trained on | IPC 10 |\n|---|---|---:|\n| convnet3 | generated | 97.12 ± 0.25 |\n" in page
    assert "| convnet3 | real | 96.50 ± 0.25 |" in page and "vgg11" not in page
    hard, soft = page.split("\nSoft labels of the bundle's teacher, ")[:2]
    assert "| convnet3 | generated, soft labels | 98.00 (one seed) |" in soft
    assert "soft labels |" not in hard
    assert "| network | trained on | IPC 10 |\n|---|---|---:|\n| convnet3 (width 32) | generated | 90.00" in page
    assert "100 epochs, students in bf16, a shortened protocol (1,000 in full)" in page
    assert "The whole training split, convnet3, 20 epochs, default recipe: 99.60 ± 0.25 %." in page
    assert "FashionMNIST" not in page and "## photos, 28x28 grey\n" in page and "ot run" not in page
    assert "official files. SHA-256 cdcdcdcdcdcdcdcd." in page and "a CPU, 2 cores, 1; torch 2.13.0" in page
    assert "| 61 | 28x28x1, cdcdcdcd | onnxruntime-cpu fp32 on cpu, onnxruntime 1.32.0 | " in page
    assert (folder / "photos.png").read_bytes().startswith(b"\x89PNG") and "(results/photos.png)" in page
    assert not (folder / "mnist.png").exists() and "mnist.png" not in page  # one size: nothing to join by a line


def test_the_controls_of_reproduce_have_names_of_their_own(script: ModuleType, tmp_path: Path) -> None:
    rows = [
        row(subject=name, content_id=name[::-1] * 9, accuracy_mean=50.0 + number)
        for number, name in enumerate(["paper", "paper loss", "no matching", "stage 1 alone"])
    ]
    page = written(script, tmp_path, a=results(row(), *rows))
    assert "| convnet3 | the preset `paper`, equal time | 50.00 ± 0.25 |" in page
    assert "| convnet3 | the stage-1 GAN, no stage 2 | 53.00 ± 0.25 |" in page
    assert {words for words, _ in RIVALS.values()} | {"paper"} == set(CONTROLS)


def test_cifar10_quotes_the_abstract_beside_the_ceiling(script: ModuleType, tmp_path: Path) -> None:
    shape = {"data": "cifar10", "mode": "stream", "recipe": "published"}
    real = {"source": "real", "subject": "real", "content_id": "", "engine": ""}
    page = written(script, tmp_path, a=results(row(**shape), row(**shape, **real, accuracy_mean=67.3), name="cifar10"))
    cifar = page.split("\n## CIFAR-10, 28x28 grey\n")[1].split("\n## ")[0]
    assert "does not say for how many steps" in cifar and "72.6 % with ConvNet-3 and 75.1 % with ResNet-18" in cifar
    assert "| convnet3 | published | 72.6 | 97.12 ± 0.25 | 67.30 ± 0.25 |  |  |" in cifar
    assert "| resnet18 |" not in cifar


def test_the_newest_bundle_stands_beside_the_abstract_by_every_recipe(script: ModuleType, tmp_path: Path) -> None:
    shape = {"data": "cifar10", "mode": "stream"}
    new = {"content_id": "12" * 32, "date": "2026-11-25 10:00 UTC", "recipe": "published"}
    paper = {"subject": "paper", "content_id": "34" * 32, "date": "2026-11-26 10:00 UTC", "recipe": "published"}
    rows = [
        row(**shape, **new, accuracy_mean=63.0), row(**shape, recipe="published"),
        row(**shape, **paper, accuracy_mean=40.0), row(**shape, recipe="one", ipc=50, accuracy_mean=60.0),
    ]  # fmt: skip
    page = written(script, tmp_path, a=results(*rows, name="cifar10"))
    table = page.split("| student recipe | the abstract")[1].split("\n\n")[0]
    assert "| convnet3 | published | 72.6 | 63.00 ± 0.25 (12121212) |  |  |  |" in table
    one = f"| convnet3 | one | 72.6 |  |  | 60.00 ± 0.25 ({row()['content_id'][:8]}) |  |"
    assert one in table and "40.00" not in table


def test_cifar10_sets_stand_beside_those_of_other_methods(script: ModuleType, tmp_path: Path) -> None:
    full = {"data": "cifar10", "recipe": "one", "epochs": 1000}
    rows = [
        row(**full), row(**full, ipc=1, accuracy_mean=26.5), row(**full, mode="stream", accuracy_mean=60.0),
        row(**full | {"epochs": 100}, accuracy_mean=40.0), row(**full, width=32, accuracy_mean=41.0),
    ]  # fmt: skip
    page = written(script, tmp_path, a=results(*rows, name="cifar10"))
    table = page.split("\n## CIFAR-10, 28x28 grey\n")[1].split("| one set of |")[1].split("\n\n")[0]
    assert "| DM, quoted | | 26.0 | 48.9 | 63.0 |" in table
    assert "| generated | one, bf16 | 26.50 ± 0.25 | 97.12 ± 0.25 |  |" in table
    page = written(script, tmp_path, a=results(row(**full | {"recipe": "condensation"}), name="cifar10"))
    table = page.split("| one set of |")[1].split("\n\n")[0]
    assert table.endswith("\n| generated | condensation, bf16 |  | 97.12 ± 0.25 |  |")


def test_one_name_at_two_sizes_has_two_sections(script: ModuleType, tmp_path: Path) -> None:
    small = results(row(accuracy_mean=50.0), fingerprint="ef" * 32, image=[16, 16, 1])
    page = written(script, tmp_path, a=results(row()), b=small)
    large, small_part = page.split("\n## MNIST, 16x16 grey\n")
    assert "\n## MNIST, 28x28 grey\n" in large and "97.12 ± 0.25" not in small_part
    assert "| 50.00 ± 0.25 |" in small_part and "50.00" not in large
    page = written(script, tmp_path, a=results(row()), b=results(row(accuracy_mean=50.0), fingerprint="ef" * 32))
    assert "\n## MNIST, 28x28 grey (cdcdcdcd)\n" in page and "\n## MNIST, 28x28 grey (efefefef)\n" in page


def test_overlapping_files_give_every_number_once_and_one_chart(script: ModuleType, tmp_path: Path) -> None:
    one_seed = row(accuracies=[97], seeds=[0], accuracy_mean=97.0, accuracy_std=None)
    page = written(
        script, tmp_path,
        a=results(one_seed), b=results(row(), row(ipc=50, accuracy_mean=98.0)),
        c=results(row(ipc=50, accuracy_mean=98.0)),
    )  # fmt: skip
    assert page.split("<details>")[1].count("| generated | convnet3 | fixed |") == 2
    assert "97.00 (one seed)" not in page and "97.12 ± 0.25 | 98.00 ± 0.25 |" in page
    assert page.count("(results/mnist.png)") == 1 and (tmp_path / "results" / "mnist.png").exists()


def test_networks_are_drawn_side_by_side(script: ModuleType, tmp_path: Path) -> None:
    real = {"source": "real", "subject": "real", "content_id": "", "engine": ""}
    rows = [row(arch=arch, mode=mode) for arch in ("convnet3", "vgg11", "mlp") for mode in ("fixed", "stream")]
    page = written(script, tmp_path, a=results(*rows, *(one | real for one in rows)))
    assert "(results/mnist-networks.png)" in page and "(results/mnist.png)" not in page
    assert (tmp_path / "results" / "mnist-networks.png").read_bytes().startswith(b"\x89PNG")


def test_the_chart_of_networks_draws_the_bundle_with_the_most_networks_of_a_mode() -> None:
    real = {"source": "real", "subject": "real", "content_id": "", "engine": ""}
    old, new = "ab" * 32, "cd" * 32  # the same generator before and after its fixed latents were refined
    arches = ("convnet3", "vgg11", "mlp")
    rows = [row(arch=arch, mode=mode) | real for arch in arches for mode in ("fixed", "stream")]
    rows += [row(arch=arch, mode="stream", content_id=old) for arch in arches]
    rows += [row(arch=arch, content_id=new, accuracy_mean=91.0) for arch in arches[:2]]
    rows += [row(content_id=old, accuracy_mean=80.0), row(labels="soft", content_id=new, accuracy_mean=99.0)]
    (section,) = [one for one in evaluation_sections([("a", results(*rows))]) if one.charts]
    (chart,) = section.charts
    assert chart.kind == "networks"
    assert {(one["mode"], one["subject"], one["content_id"]) for one in chart.rows} == {
        ("fixed", "real", ""), ("stream", "real", ""), ("fixed", "generated", new), ("stream", "generated", old),
    }  # fmt: skip
    assert {one["accuracy_mean"] for one in chart.rows if one["content_id"] == new} == {91.0}
    assert len(chart.rows) == 3 + 3 + 2 + 3


def written(script: ModuleType, docs: Path, **files: dict[str, Any]) -> str:
    """Write the page of some result files."""
    (docs / "results").mkdir(exist_ok=True)
    for stem, described in files.items():
        (docs / "results" / f"{stem}.json").write_text(json.dumps(described))
    assert script.main(["--lab", str(docs)]) == 0
    return (docs / "all-results.md").read_text()


def test_two_bundles_are_told_apart_and_two_measurements_of_one_are_refused(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(results(row())))
    (folder / "b.json").write_text(json.dumps(results(row(content_id="ef" * 32, accuracy_mean=50.0))))
    script.main(["--lab", str(tmp_path)])
    page = (tmp_path / "all-results.md").read_text()
    assert "| generated (abababab) | 97.12 ± 0.25 |" in page
    assert "| generated (efefefef) | 50.00 ± 0.25 |" in page
    (folder / "b.json").write_text(json.dumps(results(row(accuracies=[50, 50.5]))))
    with pytest.raises(SystemExit, match=r"^Two files measure mnist, generated, convnet3, fixed, IPC 10, hard labels"):
        script.main(["--lab", str(tmp_path)])


def test_a_file_of_another_kind_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^There is no folder .*nowhere: --lab is the one that holds results/\.$"):
        script.main(["--lab", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"x\.json is not a results\.json of dim eval"):
        script.main(["--lab", str(tmp_path)])


def bench(**changes: Any) -> dict[str, Any]:
    speed = {"engine": "onnxruntime-cpu", "precision": "fp32", "device": "cpu", "batch": 256, "images_per_s": 3500.4}
    speed |= {"latency_ms": 73.1, "best": True}
    ratio = {"engine": "onnxruntime-cpu", "precision": "fp32", "device": "cpu", "against": "torch-eager"}
    ratio |= {"against_precision": "fp32", "batch": 256, "ratio": 2.5, "least": 2.25, "most": 2.75}
    gap = {"engine": "torch-compile", "precision": "fp32", "device": "cpu", "batch": None, "reason": "no\ncompiler | x"}
    plain = {
        "bundle": "mnist.dim", "machine": "Linux x86_64, a CPU", "cores": 2, "gpu": None, "gflop_per_image": 0.046,
        "date": "2026-11-22 20:00 UTC", "load": 0.5, "versions": {"onnxruntime": "1.32.0"},
        "results": [speed], "ratios": [ratio, ratio | {"batch": 64}], "not_run": [gap],
        "claims": [{"claim": "fp32 against eager", "found": 2.5, "least": 2.0, "holds": True},
                   {"claim": "int8 against fp32", "found": None, "least": 2.5, "holds": None}],
    }  # fmt: skip
    return plain | changes


def test_engines_stand_with_their_machine(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "engines-cpu.json").write_text(json.dumps(bench()))
    assert script.main(["--lab", str(tmp_path)]) == 0
    page = (tmp_path / "all-results.md").read_text()
    for line in (
        "### mnist.dim, Linux x86_64, a CPU, 2 cores; onnxruntime 1.32.0; 2026-11-22 20:00 UTC, load 0.50",
        "0.046 GFLOP per image.",
        "| onnxruntime-cpu | fp32 | cpu | 256 | 3,500 \\* | 73.10 |",
        "| onnxruntime-cpu fp32 | torch-eager fp32 | 2.50 | 2.25 to 2.75 |",
        "| fp32 against eager | 2 | 2.50 | holds |",
    ):
        assert f"\n{line}\n" in page
    assert page.count("2.25 to 2.75") == 1 and "no compiler" not in page and "int8 against" not in page
    assert (tmp_path / "results" / "engines-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpu_that_was_checked_has_a_part_of_its_own(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    rows = [row | {"engine": "tensorrt-rtx", "precision": "fp16", "device": "gpu"} for row in bench()["results"]]
    faster = bench(gpu="Fake 1", results=[rows[0], rows[0] | {"batch": 1024, "images_per_s": 9000.0}])
    checked = {
        "gpu": "Fake 1", "seconds": 99.5, "failed": ["a", "b"], "not_run": ["c"],
        "steps": [{"step": "doctor", "found": {}}, {"step": "x", "found": "y"}, {"step": "bench", "found": faster}],
    }  # fmt: skip
    (tmp_path / "results" / "gpu-fake-1.json").write_text(json.dumps(checked))
    script.main(["--lab", str(tmp_path)])
    page = (tmp_path / "all-results.md").read_text()
    assert "### Fake 1\n\n- gpu-fake-1.json: 3 steps in 100 s.\n- Failed: a, b.\n" in page
    assert "| tensorrt-rtx | fp16 | gpu | 1,024 | 9,000 \\* | 73.10 |" in page


def test_a_benchmark_file_of_another_kind_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gpu-x.json").write_text(json.dumps(bench()))
    with pytest.raises(SystemExit, match=r"gpu-x\.json has no 'steps': remove it, or copy the right file\."):
        script.main(["--lab", str(tmp_path)])


def test_the_ablation_and_the_speed_of_distilling_are_written(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    begin, end = ABLATION_MARKS
    (tmp_path / "ablations.md").write_text(f"# Method\n\n{begin}\n\n{end}\n\nAfter.\n")
    pair = {"what": "stage 2", "ours": "bf16", "rival": "recipe", "recipe": "fp32"}
    tuned = {"rival": "recipe, tuned", "cpu": 5.5}
    speed = {
        "ratios": [pair | {"cpu": 6.5, "cpu_least": 5.1, "cpu_most": 7.0} | own for own in ({}, tuned)],
        "claims": [pair | {"least": 6.0, "holds": True}, pair | tuned | {"least": 6.0, "holds": False}],
        "date": "2026-11-26 10:00 UTC",
        "preset": "small",
        "image_px": 28,
        "channels": 1,
        "batch": 64,
        "rounds": 3,
        "machine": "a machine",
        "threads": 1,
        "load": 0.5,
        "torch": "2.13",
        "clock": "cpu",
        "architectures": ["convnet3", "resnet10"],
        "pool_sgd_steps": 1000,
        "rows": [
            {"what": "stage 2", "side": side, "precision": "bf16", "step_ms_cpu": 250.4, "images_per_s_cpu": 255.25}
            | {"pool_s_cpu": 215.8}
            for side in ("ours", "recipe")
        ],
    }
    (tmp_path / "results" / "distill-cpu.json").write_text(json.dumps(speed))
    ablation = {
        "variants": {"base": "everything", "ema": "no average", "rates": "equal rates", "r1": "no R1"},
        "rows": [
            {"variant": "base", "seed": 0, "fixed": [90.0, 92.0], "stream": [95.0, 97.0], "seconds": 10.0},
            {"variant": "base", "seed": 1, "fixed": [93.0, 93.0], "stream": [96.0, 96.0], "seconds": 20.0},
            {"variant": "rates", "seed": 0, "failed": "every class | is one image", "machine": "another machine"},
        ],
        "real": {"fixed": [80.0, 82.0], "stream": [98.0, 99.0]},
        "student": {"width": 32, "ipc": 10, "epochs": 300},
        "data": "mnist",
        "image_px": 16,
        "preset": "small",
        "changed": {"stage1.steps": 1200},
        "machine": "a machine",
        "threads": 1,
        "torch": "2.13",
        "date": "2026-11-22 20:00 UTC",
    }
    (tmp_path / "results" / "ablation-mnist.json").write_text(json.dumps(ablation))
    assert script.main(["--lab", str(tmp_path)]) == 0
    page, method = ((tmp_path / name).read_text() for name in ("all-results.md", "ablations.md"))
    assert "| stage 2 | bf16 | recipe fp32 | 6.50 | 5.10 to 7.00 | at least 6: holds |" in page
    assert "| stage 2 | bf16 | recipe, tuned fp32 | 5.50 | 5.10 to 7.00 | at least 6: missed |" in page
    assert "| stage 2 | ours | bf16 | 250 | 255.2 | 216 |" in page
    assert "| stage 2 | recipe | bf16 | 250 | 255.2 | - |" in page
    assert "The pool: 1,000 SGD steps in all (convnet3, resnet10), once;" in page
    assert "torch 2.13; 2026-11-26 10:00 UTC. Processor time; load 0.5." in page
    assert "Two precisions in a row mean ours in the first" in page
    assert "Accuracy in percent on the test split, of ConvNet-3 of width 32" in method
    assert "| everything | 92.0 ± 1.4 | 96.0 ± 0.0 | 2 | 15 |" in method
    first, second = (
        method.index(f"\n\n{machine}, 2026-11-22:\n\n| variant ") for machine in ("a machine", "another machine")
    )
    assert (
        first
        < method.index("| everything |")
        < second
        < method.index("| equal rates | refused: every class \\| is one")
    )
    assert "| no average |" not in method  # two tables, of what was run
    assert "| real images |" not in method and " Real images: 81.0 in `fixed`, 98.5 in `stream`.\n" in method
    assert method.endswith("\n\nAfter.\n")
    assert script.main(["--lab", str(tmp_path), "--check"]) == 0
    (tmp_path / "results" / "ablation-mnist.json").write_text(json.dumps(ablation | {"split": "hold-out"}))
    assert script.main(["--lab", str(tmp_path)]) == 0
    method = (tmp_path / "ablations.md").read_text()
    assert "Accuracy in percent on hold-out images cut from the training split, which no generator" in method
    alone = {
        key: [{**row, "machine": "a machine"} for row in rows] if key == "rows" else rows
        for key, rows in ablation.items()
    }
    (tmp_path / "results" / "ablation-mnist.json").write_text(json.dumps(alone | {"preset": "best", "changed": {}}))
    assert script.main(["--lab", str(tmp_path)]) == 0
    method = (tmp_path / "ablations.md").read_text()
    assert "| real images | 81.0 | 98.5 | | |" in method
    assert "| no average |" not in method
    (tmp_path / "ablations.md").write_text(method.replace("92.0", "93.0"))
    assert script.main(["--lab", str(tmp_path), "--check"]) == 1


def test_both_panels_of_a_summary_have_one_range_from_a_whole_ten() -> None:
    summary = SUMMARIES[1]
    recipes = {"fixed": summary.fixed_recipe, "stream": summary.recipe}
    assert len(set(recipes.values())) == 2
    shape = {"data": summary.name, "content_id": load_manifest(ROOT / summary.bundle).content_id}
    rows = [
        row(**shape, mode=mode, recipe=recipes[mode], ipc=ipc, accuracy_mean=mean)
        for mode, ipc, mean in (("fixed", 1, 30.0), ("fixed", 10, 49.0), ("stream", 10, 63.0), ("stream", 50, 76.2))
    ]
    panels = make_summary(summary, rows).axes
    assert [axes.get_ylim() for axes in panels] == [(20, 80), (20, 80)]
    assert panels[0].get_ylabel() == "test accuracy, % (axis begins at 20)"
