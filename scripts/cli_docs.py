"""Write docs/reference/cli.md from the commands themselves:  python scripts/cli_docs.py

`tests/project/test_cli_docs.py` compares the page with what this makes of the commands, so it cannot fall behind.
"""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo

from dim.cli.main import app

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
WORDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "Path": "PATH"}
HEAD = """# Commands

This page is written by `scripts/cli_docs.py` from what `dim COMMAND --help` shows.

Results go to stdout, everything else to stderr; progress bars vanish off a terminal; `--json` prints one object on
stdout. Exit codes: 0; 1 for a bad value or the world (a file, a disk, a device), told in one line on stderr; 2 for
options that do not parse; 130 for Ctrl-C, 143 for SIGTERM. `--traceback`, before or after the command, shows where an
error came from.
Tables fit the terminal, or `$COLUMNS`; in a pipe or file they are up to 200 wide whatever `$COLUMNS` says, so that a
row stays on one line.
`dim --install-completion` sets up completion for your shell.
"""


def render_page() -> str:
    """Write the whole page as Markdown."""
    return "\n".join(
        [HEAD, *(render_command(str(command.name), command.callback) for command in app.registered_commands)]
    )


def render_command(name: str, function: Any) -> str:
    """Write the part of one command.

    Args:
        name: as users type it.
        function: the command's function, with its docstring and annotated parameters.
    """
    text, _, example = inspect.cleandoc(function.__doc__).partition("Example:")
    example = re.sub(r"\[/?bold\]", "", example).strip()
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    declared = [read_declaration(parameter) for parameter in parameters]
    words = [argument.metavar for argument in declared if isinstance(argument, ArgumentInfo)]
    lines = [f"## dim {name}", "", f"`{' '.join(['dim', name, '[OPTIONS]', *words])}`", "", text.strip(), ""]
    lines += ["```bash", example, "```", "", "| option | meaning |", "|---|---|"]
    return "\n".join([*lines, *(render_row(parameter) for parameter in parameters), ""])


def read_declaration(parameter: inspect.Parameter) -> Any:
    """Return the `typer.Option` or `typer.Argument` of a parameter."""
    return get_args(parameter.annotation)[1]


def render_row(parameter: inspect.Parameter) -> str:
    """Write a parameter's line of the table."""
    declared, kind = read_declaration(parameter), get_args(parameter.annotation)[0]
    if isinstance(declared, ArgumentInfo):
        name = str(declared.metavar).strip("[]")
    else:
        # Until it runs, Typer keeps the first name given in `Annotated` as the default.
        given = [declared.default, *(declared.param_decls or ())]
        long = [word for word in given if isinstance(word, str) and word.startswith("--")]
        name = long[0] if long else "--" + parameter.name.replace("_", "-")
        if kind not in (bool, bool | None):
            name += f" {declared.metavar or WORDS[next(word for word in WORDS if word in str(kind))]}"
    meaning = str(declared.help)
    if parameter.default is inspect.Parameter.empty:
        meaning += " Required."
    elif parameter.default is not None and parameter.default is not False:
        meaning += f" Default: `{parameter.default}`."
    if declared.envvar:
        meaning += f" Or `${declared.envvar}`."
    return f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(render_page())
