"""What a stranger wrote in a bundle, a file's name or a graph does nothing to a terminal and forges no line."""

import ast
import json
import os
import pty
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from small_graphs import node, small_graph

from dim.cli.terminal import print_json, print_line, print_table, say
from dim.runtime.bundle_format.files import load_manifest, update_bundle, write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, SamplingInfo, SourceInfo
from dim.runtime.errors import printable
from dim.runtime.progress.lines import Lines
from dim.runtime.progress.terminal import TerminalBars

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;title\x07\x1b[2Jgone\x9b2J\u202etxt.exe\u2066\u200b\r\n\u2028content id  forged"


def acts(text: str) -> list[str]:
    """The letters of a text that a terminal would obey, or that turn the direction of writing."""
    return [letter for letter in text if letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")]


def test_one_function_cleans_foreign_text() -> None:
    cleaned = printable(EVIL)
    assert acts(cleaned) == [] and "\n" not in cleaned
    assert printable("a\nb\tc") == "a b c" and printable("zwölf 猫 é") == "zwölf 猫 é"


def test_everything_that_prints_cleans(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    print_line(EVIL)
    print_table(EVIL, (EVIL, "[link=http://example.invalid]b[/link]"), [(EVIL, "[/nothing]")])
    out, err = capsys.readouterr()
    assert acts(out) == acts(err) == []
    assert err.count("\n") == 1
    assert "[link=http://example.invalid]b[/link]" in out and "[/nothing]" in out


def test_json_keeps_the_text_and_escapes_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": EVIL, EVIL: [EVIL, "zwölf 猫"]})
    out = capsys.readouterr().out
    assert acts(out) == [] and "zwölf 猫" in out
    assert json.loads(out) == {"name": EVIL, EVIL: [EVIL, "zwölf 猫"]}


def test_bars_and_lines_clean() -> None:
    bars, lines = TerminalBars(), Lines()
    for shown in (bars, lines):
        shown(EVIL, 0, None, EVIL)
    (task,) = bars._progress.tasks
    assert acts(bars._progress.note) == acts(task.description) == acts(lines._describe()) == []
    assert "gone" in bars._progress.note and "gone" in task.description and "gone" in lines._describe()


def test_commands_print_through_the_terminal_module() -> None:
    """Nothing else prints; the one picture is made of numbers."""
    for path in (ROOT / "cli").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        bare = [ast.unparse(call) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert path.name == "terminal.py" or all(text.startswith("print(render_ansi(") for text in bare), path


def test_large_tables_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", [f"c{n}" for n in range(20_000)], [["x"] * 20_000])
    print_table("", ["only"], [["x" * 5000]] * 5000)
    print_table("", [f"c{n}" for n in range(50)], [["x"] * 50] * 8000)
    out = capsys.readouterr().out
    assert "7,800 more rows are not shown" in out
    assert "19,936 more columns are not shown; --json gives all." in out and "2,952 more rows are not shown" in out


def evil_bundle(path: Path, model: bytes) -> Path:
    """A bundle whose every text is hostile, as far as a manifest may hold it."""
    words = "bad\u202egnp.exe\u2066"
    lines = "MIT\ncontent id         " + "0" * 64 + "\n" * 60
    write_bundle(
        path,
        BundleDescription(
            name=words,
            created_by=lines,
            classes=("a\u202eb", "[red]c", "d\u200b"),
            image=ImageShape(height=8, width=8, channels=1),
            sampling=SamplingInfo(latent_dim=4, latent_std=1.0),
            source=SourceInfo(name=words, class_counts=(1, 1, 1), mean=(0.5,), std=(0.5,), licence=lines, note=lines),
            distill_config={"preset": lines},
            accuracy=({"[link=http://example.invalid/x]acc[/link]": 1, "[/nothing]": lines, words: words},),
            licence=lines,
        ),
        {"generator.fp32.onnx": model, "notes\u00e9.txt": b"x"},
    )
    return path


def run_in_terminal(*arguments: str, folder: Path) -> str:
    """Run a command with a terminal for output and return all that it sent there."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dim", *arguments], stdout=follower, stderr=follower, cwd=folder, env=environment
    )
    os.close(follower)
    sent = b""
    try:
        while piece := os.read(leader, 65536):
            sent += piece
    except OSError:
        pass
    process.wait(60)
    os.close(leader)
    return sent.decode().replace("\r\n", "\n")


def test_a_hostile_bundle_forges_no_line_of_inspect(tmp_path: Path) -> None:
    path = evil_bundle(tmp_path / "evil\x1b[2J.dim", small_graph())
    sent = run_in_terminal("inspect", str(path), "--no-preview", "--all", folder=tmp_path)
    # Rich's own colours are the only escapes.
    plain = "".join(piece.partition("m")[2] if place else piece for place, piece in enumerate(sent.split("\x1b[")))
    assert acts(plain) == [] and "\x1b]8" not in sent
    lines = plain.splitlines()
    content_id = load_manifest(path).content_id
    assert [line for line in lines if line.startswith("content id")] == [
        f"content id        {content_id[:16]}", f"content id        {content_id}",
    ]  # fmt: skip
    assert len(lines) < 60
    assert "[link=http" in plain


def test_names_in_a_graph_reach_no_terminal(tmp_path: Path) -> None:
    """An index beyond its table: ONNX Runtime would log the node's name as it is."""
    nodes = [
        node("Add", ["labels", "far"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["found"], name="\x1b]0;title\x07\x1b[2Jrun this"),
        node("Reshape", ["found", "point"], ["shaped"]),
        node("Add", ["plain", "shaped"], ["result"]),
    ]
    weights = {
        "far": np.int64(1000),
        "table": np.zeros((2, 1), np.float32),
        "point": np.array([-1, 1, 1, 1], np.int64),
    }
    path = evil_bundle(tmp_path / "evil.dim", small_graph(nodes, weights, "result"))
    command = [sys.executable, "-m", "dim", "generate", "--bundle", str(path), "--ipc", "2", "--format", "npz"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--threads", "1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert acts(done.stderr) == acts(done.stdout) == []
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_a_hostile_folder_name_is_cleaned(tmp_path: Path) -> None:
    folder = tmp_path / "\x1b]0;title\x07\x1b[2J\u202edata"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "dim", "distill", "--data", str(folder), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and acts(done.stderr) == []


def test_a_hostile_name_passes_verify_cleaned(tmp_path: Path) -> None:
    path = evil_bundle(tmp_path / "evil.dim", small_graph())
    (path / "\x1b[2Junlisted\u202e").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "dim", "verify", "--all", str(path), "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert acts(done.stdout) == acts(done.stderr) == []
    assert "?[2Junlisted?" in done.stdout


def test_what_was_recorded_is_shown_whole(tmp_path: Path) -> None:
    """A few dozen columns and rows are no swarm."""
    path = evil_bundle(tmp_path / "a.dim", small_graph())
    rows: Any = tuple({f"k{column}": row for column in range(25)} for row in range(80))
    assert replace(update_bundle(path, accuracy=rows)).accuracy == rows
    done = subprocess.run(
        [sys.executable, "-m", "dim", "inspect", str(path), "--all"], capture_output=True, text=True, timeout=60
    )
    assert "not shown" not in done.stdout
    assert "k24" in done.stdout
