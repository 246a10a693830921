"""Standard output that cannot encode a name, is closed or full: the right answer and the right exit code."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from cli_tools import dim, one_line

from dim.cli import main, terminal
from dim.runtime.errors import BadValueError, DimError, MissingExtraError, hide_secrets

NAME = "\N{CJK UNIFIED IDEOGRAPH-732B}-\N{GRINNING FACE}"


def run(*arguments: object, shell: str = "", encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own; `shell` is what a shell writes behind it, such as `>&-`."""
    command = [sys.executable, "-m", "dim.cli.main", *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", *command], capture_output=True, env=environment, check=False
    )


def test_a_command_knows_how_wide_its_terminal_is() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    code = "import shutil; from dim.cli.terminal import prepare_streams as prepare; prepare(own=True)"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run(
        [sys.executable, "-c", f"{code}; print(shutil.get_terminal_size().columns)"],
        stdout=follower, env=environment, check=True,
    )  # fmt: skip
    os.close(follower)
    assert os.read(leader, 100) == b"50\r\n"
    os.close(leader)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_name_that_stdout_cannot_encode(tiny_bundle: Path, tmp_path: Path, encoding: str) -> None:
    out = tmp_path / NAME
    common = ["generate", "--ipc", 1, "--out", out, "--bundle", tiny_bundle]
    ran = run(*common, encoding=encoding)
    assert ran.returncode == 0 and (out / "dataset.json").is_file()
    first = ran.stdout.decode(encoding).splitlines()[0]
    named = str(out).encode(encoding, "backslashreplace").decode(encoding)
    assert first == f"{named}: 3 images as imagefolder, complete."
    ran = run(*common, "--json", encoding=encoding)
    assert ran.returncode == 0 and json.loads(ran.stdout.decode(encoding))["out"] == str(out)
    ran = run("verify", out, encoding=encoding)
    assert ran.returncode == 0 and b"4 checks passed" in ran.stdout


def test_a_name_that_is_not_unicode(tiny_bundle: Path, tmp_path: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    ran = run("generate", "--ipc", 1, "--out", out, "--bundle", tiny_bundle, "--json")
    assert ran.returncode == 0 and json.loads(ran.stdout)["out"] == out


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams(tiny_bundle: Path, tmp_path: Path, closed: str) -> None:
    """The command does its work and ends as it would; no file of the set gets what is printed."""
    expected, out = tmp_path / "expected", tmp_path / "set"
    common = ["--ipc", 2, "--bundle", tiny_bundle, "--format", "npy"]
    assert run("generate", *common, "--out", expected).returncode == 0
    assert run("generate", *common, "--out", out, shell=closed).returncode == 0
    for path in expected.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert run("inspect", tiny_bundle, shell=closed).returncode == 0
    (out / "images.npy").write_bytes(b"")
    assert run("verify", out, shell=closed).returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    out = tmp_path / "set"
    ran = run("generate", "--ipc", 1, "--out", out, "--bundle", tiny_bundle, *more, shell=">/dev/full")
    assert ran.returncode == 1 and (out / "dataset.json").is_file()
    assert ran.stderr.decode().splitlines()[-1] == (
        "Error: Standard output cannot be written (No space left on device): what the command makes is there, what it "
        "prints is lost."
    )
    ran = run("inspect", tiny_bundle, *more, shell=">/dev/full")
    assert ran.returncode == 1 and b"Standard output cannot be written" in ran.stderr


def test_a_reader_that_goes_away(tiny_bundle: Path) -> None:
    ran = run("inspect", tiny_bundle, "--json", shell="| head -c 1; exit ${PIPESTATUS[0]}")
    assert ran.stdout == b"{" and b"Traceback" not in ran.stderr and b"error of dim itself" not in ran.stderr


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(11, "try again")])
def test_no_more_threads(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(terminal, "say", fail)
    monkeypatch.setattr("dim.cli.options.say", fail)
    assert one_line(dim("inspect")).startswith("No more threads or processes can be started here: ask for fewer with")


URLS = {
    "s3://bucket/set": "s3://bucket/set",
    "https://user:s3cret@host/x.dim": "https://***@host/x.dim",
    "https://s3cret@host:80/x": "https://***@host:80/x",
    "https://host/x?X-Amz-Signature=s3cret&y=1": "https://host/x?***",
    "https://host/x#access_token=s3cret": "https://host/x#***",
    "ftp://u:s3cret@h/x?t=s3cret": "ftp://***@h/x?***",
    "simplecache::https://u:p@s3cret@h/x": "simplecache::https://***@h/x",
    "url='https://h/x?sig=s3cret' failed": "url='https://h/x?***' failed",
    "mail to a@b.c, is it?": "mail to a@b.c, is it?",
}


@pytest.mark.parametrize("url", URLS)
def test_secrets_of_urls_are_in_no_message(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hide_secrets(url) == URLS[url]
    for error in (DimError(url), BadValueError(url), MissingExtraError("x", "y", url)):
        assert "s3cret" not in str(error) and "s3cret" not in repr(error)
    terminal.say(f"The bundle comes from {url}")
    with pytest.raises(SystemExit):
        main._fail(url)
    assert "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["inspect"], ["generate", "--ipc", 1, "--out", "x", "--bundle"], ["verify"]])
def test_secrets_of_a_bundles_url_are_not_printed(command: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("https://user:s3cret@127.0.0.1:9/x.dim", "https://127.0.0.1:9/x.dim?sig=s3cret"):
        ran = dim(*command, url)
        assert ran.code == 1 and "s3cret" not in ran.err + ran.out and "127.0.0.1:9" in ran.err
