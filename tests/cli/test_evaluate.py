"""How `dim eval` reads its options, and that one call of the library gets them."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_tools import dim, one_line
from data_samples import image_file, random_images, write_folder
from tiny_bundle import build_tiny_bundle

from dim.cli.evaluate import parse_bundles
from dim.cli.parsing import parse_numbers
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.evaluation.measure import Evaluation
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError
from dim.students.recipes import Recipe

DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("digits") / "digits.dim", classes=DIGITS)


def test_numbers_are_joined_by_commas() -> None:
    assert parse_numbers("--ipc", "10, 50,1") == (10, 50, 1)
    with pytest.raises(BadValueError, match="--ipc got 'ten'; it takes whole numbers joined by commas, as in 10,50,1."):
        parse_numbers("--ipc", "ten")


def test_bundles_to_compare_have_names() -> None:
    assert parse_bundles(["first=a.dim", "b=x=y", "first=c"]) == {
        "first": (Path("a.dim"), Path("c")),
        "b": (Path("x=y"),),
    }
    with pytest.raises(BadValueError, match="--compare got 'a.dim'; it takes NAME=BUNDLE"):
        parse_bundles(["a.dim"])
    with pytest.raises(BadValueError, match="^Two bundles are called 'generated': give the one to compare"):
        parse_bundles(["generated=1"])


def test_a_bundle_of_a_folder_needs_its_data_named(digits_bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    source = load_manifest(digits_bundle).source.name
    (tmp_path / source).mkdir()  # not taken, though it has the name
    assert one_line(dim("eval", "--bundle", digits_bundle)) == (
        f"The bundle was distilled from a folder or file called '{source}', and does not know where it lies: "
        "name it with --data."
    )


def test_cautions_about_the_data_stand_below_the_table(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"seconds_per_student": 1.0, "seeds": [0], "content_id": "", "source": "real"}
    found = SimpleNamespace(rows=[row], out=tmp_path, results=(1,), finished=True, found={})
    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", lambda *arguments, **options: found)
    monkeypatch.setattr("dim.evaluation.table.accuracy_table", lambda rows, caption: "accuracy")
    path = tmp_path / "few.npz"
    np.savez(path, images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % 10)
    ran = dim("eval", "--bundle", digits_bundle, "--data", path, "--out", tmp_path)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[:3] == [
        "accuracy",
        "Caution about the data: fewer than 10 training images in 10 of 10 classes ('0', '1', '2', ...).",
        "Caution about the data: fewer than 20 test images in 10 of 10 classes ('0', '1', '2', ...), so accuracies are "
        "rough.",
    ]
    assert "few: caution: fewer than 10 training images in 10 of 10 classes" in ran.err


@pytest.mark.slow
def test_the_library_gets_what_was_asked(digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(bundles: Any, images: Any, protocol: Any, execution: Any, *, out: Path, **options: Any) -> Evaluation:
        seen.update(bundles=bundles, images=images, protocol=protocol, execution=execution, out=out, **options)
        return Evaluation(out=out, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", record)
    options = ["--preset", "quick", "--ipc", "5", "--arch", "mlp,vgg11", "--seeds", 2, "--epochs", 3, "--mode", "fixed"]
    options += ["--controls", "none", "--fresh", "--jobs", 2, "--compare", f"other={digits_bundle}", "--json"]
    options += ["--engine", "torch", "--precision", "fp16", "--soft", "--time-limit", "90s"]
    ran = dim("eval", "--data", "digits", "--bundle", digits_bundle, "--out", tmp_path / "eval", *options)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == {"out": str(tmp_path / "eval"), "finished": True, "rows": []}
    assert (
        seen["bundles"] == {"generated": digits_bundle, "other": (digits_bundle,)} and seen["images"].name == "digits"
    )
    assert seen["protocol"] == EvalProtocol(
        ipcs=(5,), archs=("mlp", "vgg11"), width=32, seeds=(0, 1), epochs=3, modes=("fixed",), controls=(),
        labels=("hard", "soft"),
    )  # fmt: skip
    assert seen["execution"] == Execution(
        resume=False, jobs=2, engine=EngineOptions(precision="fp16"), torch_draws=True, time_limit_s=90.0
    )
    assert seen["for_record"] is False


def test_a_recipe_chosen_on_the_hold_out_is_given_to_every_student(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    chosen = Recipe(name="chosen", lr=0.1)

    def choose(images: Any, protocol: EvalProtocol, execution: Any, *, out: Path, **options: Any) -> Recipe:
        calls.append(("choose", out, protocol.ipcs[0], protocol.modes, protocol.epochs))
        return chosen

    def measure(subjects: Any, images: Any, protocol: EvalProtocol, *_: Any, **options: Any) -> Evaluation:
        calls.append(("run", protocol.recipe))
        return Evaluation(out=tmp_path, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.choose_recipe", choose)
    monkeypatch.setattr("dim.evaluation.evaluate.measure", measure)
    options = ["--ipc", "5,1", "--epochs", 3, "--mode", "fixed", "--recipe", "holdout"]
    ran = dim("eval", "--data", "digits", "--bundle", digits_bundle, "--out", tmp_path, *options)
    assert ran.code == 0, ran.err
    assert calls == [("choose", tmp_path / "recipe", 5, ("fixed",), 3), ("run", chosen)]


def test_the_seed_of_the_distillation_cuts_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build_tiny_bundle(tmp_path / "digits.dim", classes=DIGITS, distill_config={"seed": 5})
    seen: dict[str, Any] = {}

    def record(bundles: Any, images: Any, *_: Any, **options: Any) -> Evaluation:
        seen.update(images=images)
        return Evaluation(out=tmp_path, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", record)
    dim("eval", "--data", "digits", "--bundle", bundle, "--out", tmp_path / "eval")
    assert np.array_equal(seen["images"].test_images, load_data("digits", DataOptions(seed=5)).test_images)
    assert not np.array_equal(seen["images"].test_images, load_data("digits", DataOptions(seed=0)).test_images)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "slow"], "There is no preset 'slow'; there are quick, full, reference."),
        (["--ipc", "ten"], "--ipc got 'ten'; it takes whole numbers joined by commas, as in 10,50,1."),
        (["--mode", "both"], "There is no mode 'both'; there are fixed, stream."),
        (["--seeds", "0"], None),
        (["--seeds", "-1"], "--seeds is -1; it must be a whole number from 0."),
        (["--arch", "convnet9"], None),
        (["--epochs", "0"], None),
        (["--recipe", "secret"], None),
        (["--soft"], None),
        (["--data", "no-such-set"], None),
    ],
)
def test_bad_values_are_one_line(digits_bundle: Path, tmp_path: Path, arguments: list[str], line: str | None) -> None:
    data = [] if "--data" in arguments else ["--data", "digits"]
    found = one_line(dim("eval", *data, "--bundle", digits_bundle, "--out", tmp_path / "eval", *arguments))
    assert line is None or found == line


def _ambiguous_tree(folder: Path) -> Path:
    images = random_images(24, 8, 1)
    names = [f"{camera}/{digit}/{n}.png" for camera in ("left", "right") for digit in "abc" for n in range(4)]
    return write_folder(folder, {name: image_file(image) for name, image in zip(names, images, strict=True)})


def test_a_source_of_the_same_name_is_read_as_its_run_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def keep(bundles: Any, images: Any, *others: Any, **more: Any) -> Evaluation:
        seen.append(images)
        return Evaluation(out=tmp_path, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", keep)
    config = {"data": {"reading": {"layout": "groups/classes", "size": 16, "seed": 9, "unheard": 1}}}
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", classes=("a", "b", "c"), distill_config=config)
    same, other = _ambiguous_tree(tmp_path / "tiny"), _ambiguous_tree(tmp_path / "other")
    ran = dim("eval", "--bundle", bundle, "--data", same)
    assert ran.code == 0 and "tiny is read as it was distilled: --layout groups/classes.\n" in ran.err
    assert seen[-1].classes == ("a", "b", "c") and seen[-1].height == 8
    assert "all hold the same folders (a, b, c): say --layout" in one_line(
        dim("eval", "--bundle", bundle, "--data", other)
    )
    ran = dim("eval", "--bundle", bundle, "--data", same, "--layout", "classes")
    assert ran.code == 0 and "as it was distilled" not in ran.err and seen[-1].classes == ("left", "right")


def test_faults_of_the_data_and_of_options_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    folder = write_folder(tmp_path / "photos", {"a.png": b"", "labels.csv": b"\xff"})
    wrong = {
        f"{folder}: labels.csv: not text in UTF-8 (invalid start byte at byte 0); save it as UTF-8.": [],
        "There is no classifier 'lenet'; there are convnet3, resnet10, ": ["--arch", "lenet"],
        "--bits is 99: it must be between 8 and 16.": ["--bits", "99"],
        "--compare got 'x'; it takes NAME=BUNDLE, as in first=runs/first/mnist.dim.": ["--compare", "x"],
        "--device is 'tpu'; it must be auto, cpu or gpu.": ["--device", "tpu"],
    }
    for message, more in wrong.items():
        command = ["eval", "--bundle", str(bundle), "--data", str(folder), *more]
        program = (
            "import sys\nfrom dim.cli.main import main\n"
            f"try:\n    main({command!r})\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout == "1 False\n", done.stderr
        assert message in done.stderr.splitlines()[-1] and done.stderr.count("Error: ") == 1


def test_what_a_run_recorded_is_not_refused_where_it_does_nothing_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(bundles: Any, images: Any, *_: Any, **options: Any) -> Evaluation:
        return Evaluation(out=tmp_path, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", record)
    reading = {"follow_links": True}
    bundle = build_tiny_bundle(tmp_path / "b.dim", classes=("a", "b"), distill_config={"data": {"reading": reading}})
    images = random_images(8, 8, 1)
    np.savez(tmp_path / "tiny.npz", images=images, labels=np.array(["a", "b"] * 4))
    command = ("eval", "--data", tmp_path / "tiny.npz", "--bundle", bundle, "--out", tmp_path / "eval")
    ran = dim(*command)
    assert ran.code == 0 and "is read as it was distilled: --follow-links." in ran.err
    assert one_line(dim(*command, "--follow-links")) == (
        "tiny is no folder of images, so --follow-links does nothing: leave it out."
    )
