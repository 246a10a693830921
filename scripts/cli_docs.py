"""Write docs/cli.md from the commands themselves:  python scripts/cli_docs.py

`tests/project/test_cli_docs.py` compares the page with what this makes of the commands, so it cannot fall behind.
"""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo

from dim.cli.main import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WORDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "Path": "PATH"}
HEAD = """# Commands

This page is written by `scripts/cli_docs.py` from what `dim COMMAND --help` shows.

Results go to stdout, everything else to stderr; progress bars vanish off a terminal; `--json` prints one object on
stdout. Exit codes: 0; 1 for a bad value or the world (a file, a disk, a device), told in one line on stderr; 2 for
options that do not parse; 130 for Ctrl-C, 143 for SIGTERM. `--traceback`, before or after the command, shows where an
error came from.
`dim --install-completion` sets up completion for your shell.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(section(str(command.name), command.callback) for command in app.registered_commands)])


def section(name: str, function: Any) -> str:
    """Return one command's part of the page."""
    text, _, example = inspect.cleandoc(function.__doc__).partition("Example:")
    example = re.sub(r"\[/?bold\]", "", example).strip()
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    words = [info(p).metavar for p in parameters if isinstance(info(p), ArgumentInfo)]
    lines = [f"## dim {name}", "", f"`{' '.join(['dim', name, '[OPTIONS]', *words])}`", "", text.strip(), ""]
    lines += ["```bash", example, "```", "", "| option | meaning |", "|---|---|"]
    return "\n".join([*lines, *(row(parameter) for parameter in parameters), ""])


def info(parameter: inspect.Parameter) -> Any:
    """Return what Typer was told about a parameter."""
    return get_args(parameter.annotation)[1]


def row(parameter: inspect.Parameter) -> str:
    """Return a line of the table."""
    told, kind = info(parameter), get_args(parameter.annotation)[0]
    if isinstance(told, ArgumentInfo):
        name = str(told.metavar).strip("[]")
    else:
        # Typer takes the first name given in `Annotated` for a default, and puts that right only when it runs.
        given = [told.default, *(told.param_decls or ())]
        long = [word for word in given if isinstance(word, str) and word.startswith("--")]
        name = long[0] if long else "--" + parameter.name.replace("_", "-")
        if kind is not bool:
            name += f" {told.metavar or WORDS[next(word for word in WORDS if word in str(kind))]}"
    meaning = str(told.help)
    if parameter.default is inspect.Parameter.empty:
        meaning += " Required."
    elif parameter.default is not None and parameter.default is not False:
        meaning += f" Default: `{parameter.default}`."
    if told.envvar:
        meaning += f" Or `${told.envvar}`."
    return f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(page())
