"""The pages of documentation, the commands on them, and the script that measures their sentences."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shell_lines_of(text: str) -> list[str]:
    """List the lines of a page's shell blocks, with continued lines joined and comments cut."""
    found = []
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line.strip().removeprefix("$ ")).strip()
            found += [command] if command else []
    return found


def commands_of(text: str) -> list[str]:
    """List the `dim COMMAND ...` lines of a page's shell blocks."""
    return [line for line in shell_lines_of(text) if re.match(r"dim [a-z]", line)]


def load_sentences() -> ModuleType:
    """Load scripts/sentences.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("sentences", ROOT / "scripts" / "sentences.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
