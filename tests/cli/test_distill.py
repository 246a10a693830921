"""How `dim distill` reads its options, and that one call of the library gets them."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_tools import dim, one_line

from dim.cli.distill import parse_settings
from dim.cli.parsing import parse_duration
from dim.presets import preset
from dim.runtime.errors import BadValueError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("2H", 7200), ("1h5s", 3605)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "1.5h", "-3m", "3d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadValueError, match=r"^--time-limit got .*; it takes a time such as 90s, 9m or 1h30m\.$"):
        parse_duration(text)


def test_settings_are_json_or_text() -> None:
    entries = ["generator.width=48", "autocast=off", "latent_std=1.5", "pool.ages=[50, 100]", "x=a=b"]
    assert parse_settings(entries) == {
        "generator.width": 48,
        "autocast": "off",
        "latent_std": 1.5,
        "pool.ages": (50, 100),
        "x": "a=b",
    }


@pytest.mark.parametrize("entry", ["width", "=3"])
def test_a_setting_needs_a_field_and_a_value(entry: str) -> None:
    with pytest.raises(BadValueError, match=f"--set got '{entry}'; it takes FIELD=VALUE, as in generator.width=48."):
        parse_settings([entry])


@pytest.mark.slow
def test_the_library_gets_what_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def record(images: Any, config: str, run_dir: Path, **options: Any) -> Any:
        made = preset(config, data=images, overrides=options["overrides"])
        seen.update(config=made, images=images, run_dir=run_dir, **options)
        return SimpleNamespace(run_dir=run_dir, finished=True)

    importlib.import_module("dim.distillation.estimate")  # it keeps the real function
    monkeypatch.setattr("dim.distillation.distill.distill", record)
    options = ["--preset", "tiny", "--seed", 3, "--steps", 7, "--matching-steps", 2, "--matching-loss", "paper"]
    options += ["--set", "generator.width=16", "--device", "cpu", "--threads", 2, "--time-limit", "9m"]
    options += ["--resume", "--json", "--from-stage1", tmp_path / "other", "--log", "tensorboard"]
    ran = dim("distill", "--data", "digits", "--out", tmp_path / "run", *options)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["run_dir"] == str(tmp_path / "run")
    config = seen["config"]
    assert (config.preset, config.seed, config.generator.width) == ("tiny", 3, 16)
    assert (config.stage1.steps, config.stage2.steps, config.matching.loss) == (7, 2, "paper")
    assert (seen["images"].name, seen["images"].split_seed) == ("digits", 3)
    assert (seen["device"], seen["threads"], seen["time_limit_s"]) == ("cpu", 2, 540.0)
    assert (seen["resume"], seen["log"], seen["from_stage1"]) == (True, "tensorboard", tmp_path / "other")
    assert seen["progress"] is True


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []

    def interrupt(*arguments: Any, **options: Any) -> Any:
        for name in written:
            (run / name).write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr("dim.distillation.distill.distill", interrupt)
    run = tmp_path / "run"
    go_on = f"dim distill --resume --out {run}"
    (run / "checkpoints").mkdir(parents=True)
    for file, kept in {
        "": f"Nothing was begun in {run} yet: the same command begins anew.",
        "config.json": f"{run} has no checkpoint yet, so nothing but the settings is kept: begin again with  {go_on}",
        "checkpoints/stage1-00000400.json": "What was done up to the last checkpoint (stage 1, step 400) is kept in "
        f"{run}: go on with  {go_on}",
        "checkpoints/stage2-00001200.json": "What was done up to the last checkpoint (stage 2, step 1,200) is kept in "
        f"{run}: go on with  {go_on}",
    }.items():
        written += [file] * bool(file)
        ran = dim("distill", "--data", "digits", "--out", run)
        (run / "config.json").unlink(missing_ok=True)
        assert (ran.code, ran.out) == (130, "")
        assert ran.err.splitlines()[-2:] == [kept, "Interrupted."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tinny"], "There is no preset named 'tinny' (did you mean tiny?): choose one of tiny, small, "),
        (
            ["--set", "generator.widht=48"],
            "The configuration has no field 'generator.widht' (did you mean generator.width?).",
        ),
        (
            ["--log", "wandb"],
            "There is no log 'wandb'; there are jsonl and tensorboard, and any other takes the values",
        ),
        (
            ["--set", "generator.width=abc"],
            "--set generator.width is 'abc'; it must be an integer.",
        ),
        (
            ["--set", "generator.width=48.5"],
            "--set generator.width is 48.5; it must be an integer.",
        ),
        (
            ["--set", "generator.mirrored=yes"],
            "--set generator.mirrored is 'yes'; it must be true or false.",
        ),
        (["--set", "pool.ages=50"], "--set pool.ages is 50; it must be a list."),
        (["--set", 'pool.ages=[50, "x"]'], "The configuration's field pool.ages[1] is 'x'; it must be an integer."),
        (
            ["--set", "pool.augment=typo"],
            "--set pool.augment is 'typo'; it must be a policy of augmentations (Unknown augmentation step 'typo' in ",
        ),
        (
            ["--set", 'pool.architectures=["lenet"]'],
            "--set pool.architectures is ('lenet',); it must be some of convnet3, resnet10, ",
        ),
        (["--set", "deployment.teacher=lenet"], "--set deployment.teacher is 'lenet'; it must be one of convnet3, "),
        (["--set", "stage1=3"], "The configuration has no field 'stage1'"),
        (["--steps", "-1"], "--steps is -1; it must be between 0 and 100,000,000."),
        (["--matching-steps", "-1"], "--matching-steps is -1; it must be between 0 and 100,000,000."),
        (["--matching-loss", "l2"], "--matching-loss is 'l2'; it must be one of distribution, paper, none."),
        (["--set", "stage1.steps=-1"], "--set stage1.steps is -1; it must be between 0 and "),
        (["--seed", "-1"], "--seed is -1: it must be between 0 and 2**64 - 1."),
        (["--size", "7"], "--size is 7: it must be between 8 and 128 pixels."),
        (["--channels", "2"], "--channels is 2: it must be 1 (grey) or 3 (colour)."),
        (["--bits", "99"], "--bits is 99: it must be between 8 and 16."),
        (["--replay-ipc", "0"], "--replay-ipc is 0: it must be between 1 and 1000000."),
        (["--layout", "class"], "--layout is 'class': it must be one of auto, classes, "),
        (["--device", "tpu"], "There is no device named 'tpu': choose auto, cpu or gpu."),
        (["--threads", "0"], "The number of threads is 0; it must lie between 1 and "),
        (["--time-limit", "soon"], "--time-limit got 'soon'; it takes a time such as 90s, 9m or 1h30m."),
    ],
)
def test_options_and_fields_are_checked_before_data_are_read(arguments: list[str], message: str) -> None:
    assert message in one_line(dim("distill", "--data", "no-such-set", *arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "no-such-set"], "no-such-set"),
        (["--data", "digits", "--preset", "huge"], "There is no preset named 'huge': choose one of "),
        (["--data", "digits", "--size", "7"], "7"),
        (["--data", "digits", "--channels", "2"], "2"),
        (["--data", "digits", "--set", "generator.height=3"], "generator.height"),
        (["--data", "digits", "--set", "generator.width=wide"], "wide"),
        (["--data", "digits", "--set", "seed=3"], "use --seed, not --set"),
        (["--data", "digits", "--steps", "-1"], "-1"),
        (["--data", "digits", "--device", "tpu"], "tpu"),
    ],
)
def test_bad_values_are_one_line_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in one_line(dim("distill", *arguments, "--out", "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_says_what_a_run_would_take_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--preset", "tiny", "--set", "generator.width=8", "--set", "discriminator.width=8", "--threads", 1]
    ran = dim("distill", "--data", "digits", *options, "--dry-run")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == "Data:    digits, 10 classes, 1438 training images (139 to 146 per class)"
    assert lines[1] == "         and 359 test images of 8 x 8 x 1"
    assert lines[2].startswith("Memory:  ") and lines[2].endswith("the images are 0.1 MB, in memory")
    assert lines[3].startswith("stage1:  1200 steps of 0.") and lines[4].startswith("pool:    400 steps of 0.")
    assert lines[5].startswith("stage2:  300 steps of 0.") and lines[6].startswith("In all:  about ")
    report = json.loads(dim("distill", "--data", "digits", *options, "--dry-run", "--json").out)
    assert report["steps"] == {"stage1": 1200, "pool": 400, "stage2": 300} and report["data"]["class_counts"][0] > 100
    steps = report["seconds_per_step"]
    assert report["seconds"] == pytest.approx(sum(count * steps[part] for part, count in report["steps"].items()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_run_is_refused_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, more in (("run", ["--out", "run"]), ("runs/photos", [])):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / "photos").mkdir(exist_ok=True)
        assert one_line(dim("distill", "--data", "photos", *more)) == (
            f"{folder} already holds a run: choose another --out, or go on with dim distill --resume --out {folder}"
        )


def test_an_option_that_does_nothing_for_the_data_is_told_as_it_was_typed() -> None:
    for option, why in {
        "--replay-ipc=1000": "is no bundle, so --replay-ipc does nothing",
        "--split=train": "names no splits, so --split does nothing",
    }.items():
        assert one_line(dim("distill", "--data", "digits", option)) == f"digits {why}: leave it out."
