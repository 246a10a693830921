"""Every Python block of the README and the documentation runs as it stands."""

import re
from pathlib import Path

import pytest
from cli_tools import dim
from doc_pages import PAGES, ROOT
from tiny_bundle import build_tiny_bundle

BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with the bundles that the pages speak of, and go there."""
    bundle = build_tiny_bundle(tmp_path / "mnist.dim", classes=tuple("0123456789"))
    for place in ("runs/digits/digits.dim", "cifar10.dim"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(bundle)
    monkeypatch.setenv("DIM_BUNDLE", str(bundle))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_runs(block: str, digits: Path) -> None:
    if "digits-npz/" in block:
        assert dim("generate", "--ipc", 2, "--format", "npz", "--out", "digits-npz").code == 0
    exec(compile(block, "block", "exec"), {"__name__": "docs"})


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5
