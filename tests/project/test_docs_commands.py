"""Every command of the documentation runs, page by page and in the page's order.

What is trained is shortened by options that are added; everything else stays as a reader types it.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from cli_tools import dim
from data_samples import class_folders, write_folder, write_mnist, zipped
from doc_pages import PAGES, ROOT, commands_of, shell_lines_of
from quick_runs import QUICK
from tiny_bundle import build_tiny_bundle

NOT_HERE = {
    r"--ray\b": "takes seconds to start a cluster; tests/sets/test_ray.py does",
    r"(s3|gs|hf)://": "tests/storage has an object store and a Hub",
    r"--engine tensorrt|--format (trt|rtx)": "needs an NVIDIA library; tests/trt",
    r"--precision bf16": "needs a processor with bf16",
    r"\$": "variables of a scheduler",
    r"dim view\b": "serves until Ctrl-C; tests/gallery",
    r"--total \d{6,}(?!.*--dry-run)": "takes long",
}
"""Commands that are not run, and why; their options are checked in test_cli_docs.py."""
OTHER_PROGRAMS = (
    r"pip install |pip-audit |ssh -L |make |git clone |docker (build|run) |dim --",
    r"(python|torchrun .*) (examples|benchmarks)/\w+\.py|python -m lab\.",
)
"""Lines of shell blocks that are no commands of dim. tests/project/test_examples.py runs the examples."""
QUICKER = QUICK | {
    "generator.max_width": 48,
    "checkpoint_steps": 100,
    "pool.architectures": ("mlp",),
    "pool.ages": (1,),
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
    "deployment.refine_steps": 0,
}
SHORT_RUN = [f"--set={name}={json.dumps(value)}" for name, value in QUICKER.items() if not name.endswith(".steps")]
SHORTER = {
    "distill": (SHORT_RUN, ["--steps", "2", "--matching-steps", "1", "--threads", "1"]),
    "eval": ([], ["--width", "8", "--epochs", "1", "--seeds", "1", "--ipc", "1", "--arch", "mlp", "--threads", "1"]),
    "bench": ([], ["--batch", "1", "--rounds", "1", "--seconds", "0.01", "--no-search", "--no-torch"]),
}
"""Options put before and behind those of a command; of an option given twice the last one counts."""


def stays_out(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in NOT_HERE)


def shorten(line: str) -> list[str]:
    """Turn a command into its words, with the options that shorten it."""
    _, command, *options = shlex.split(line)
    before, behind = SHORTER.get(command, ([], []))
    replay = ["--replay-ipc", "20"] if command == "distill" and ".dim" in " ".join(options) else []
    return [command, *before, *options, *behind, *replay]


def prepare(folder: Path, lines: list[str]) -> dict[str, str]:
    """Make what a page's readers have; returns the environment."""
    bundle = build_tiny_bundle(folder / "mnist.dim", classes=tuple("0123456789"))
    build_tiny_bundle(folder / "mnist-0-4.dim", classes=tuple("01234"), image_px=28)
    for name in ("digits", "mnist"):
        if not any(re.match(rf"dim distill .*--out runs/{name}\b", line) for line in lines):
            (folder / "runs" / name).mkdir(parents=True)
            (folder / "runs" / name / f"{name}.dim").symlink_to(bundle)
    photos = class_folders(train=12, test=4, size=12)
    if not any("generate" in line and "--out photos/" in line for line in lines):
        write_folder(folder / "photos", photos)
    (folder / "photos.zip").write_bytes(zipped(photos))
    for classes in ("01234", "56789"):
        images = class_folders(classes=classes, train=12, test=4, size=28, channels=1)
        write_folder(folder / f"digits-{classes[0]}-{classes[-1]}", images)
    (folder / "official").mkdir()
    write_mnist(folder / "official", num_train=60, num_test=20)
    return {"DIM_BUNDLE": str(bundle), "DIM_DATA": str(folder / "official")}


WITH_COMMANDS = [path for path in PAGES if any(not stays_out(line) for line in commands_of(path.read_text()))]


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_the_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in commands_of(path.read_text()) if not stays_out(line)]
    environment: Mapping[str, str] = prepare(tmp_path, lines)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        result = dim(*shorten(line))
        assert result.code == 0, f"{line}\n{result.err}"


def test_every_line_of_a_shell_block_is_known() -> None:
    for path in PAGES:
        for line in shell_lines_of(path.read_text()):
            assert re.match("|".join((r"dim [a-z]", *OTHER_PROGRAMS)), line), f"{path.name}: {line}"


def test_no_reason_outlives_its_command() -> None:
    lines = [line for path in PAGES for line in commands_of(path.read_text())]
    assert [pattern for pattern in NOT_HERE if not any(re.search(pattern, line) for line in lines)] == []
    assert sum(not stays_out(line) for line in lines) >= 40
