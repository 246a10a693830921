"""The documentation names what there is: the page of the commands is written from them, other pages call real ones."""

import importlib.util
import re
from pathlib import Path

import pytest
from cli_tools import dim
from doc_pages import PAGES, commands_of

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_commands_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "scripts" / "cli_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "reference" / "cli.md").read_text() == module.render_page(), (
        "run  python scripts/cli_docs.py"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_inside_the_repository_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_option_that_a_page_uses_exists(path: Path) -> None:
    for line in commands_of(path.read_text()):
        words = line.split()
        shown = dim(words[1], "--help")
        assert shown.code == 0, f"{path.name}: {line}"
        known = set(re.findall(r"--[a-z][a-z0-9-]*", shown.out))
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", line):
            assert option in known | {"--help", "--version", "--traceback"}, f"{path.name}: {option} in: {line}"


def test_commands_are_found_in_a_page() -> None:
    text = "```bash\n$ dim generate --ipc 5 \\\n  --out x   # a comment --no-option\nls\n```\n`dim verify`\n"
    assert commands_of(text) == ["dim generate --ipc 5    --out x"]
