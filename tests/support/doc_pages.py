"""The pages of documentation, and the commands on them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands_of(text: str) -> list[str]:
    """List the `dim COMMAND ...` lines of a page's shell blocks, with continued lines joined and comments cut."""
    found = []
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s#.*", "", line.strip().removeprefix("$ ")).strip()
            if re.match(r"dim [a-z]", command):
                found.append(command)
    return found
