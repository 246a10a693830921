"""What may import what: fast checks of the rules that import-linter cannot see."""

import ast
from pathlib import Path

import pytest
from fresh_interpreter import HEAVY, imported_by

ROOT = Path(__file__).parents[2]
LINKS = [("dim", name) for name in ("cli", "export", "runtime")]


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    assert not imported_by("import dim.runtime").intersection(HEAVY)


@pytest.mark.parametrize("folder", ["dim", "runtime", "export", "cli"])
def test_nobody_inside_enters_by_the_front_door(folder: str) -> None:
    """Importing `dim` itself would let import-linter see a way from every room to every other."""
    names = {name for path in sources(folder) for name, _ in imports_of(path)}
    rooms = {path.stem for path in (ROOT / "dim").iterdir()}
    assert [
        name for name in names if name == "dim" or (name.startswith("dim.") and name.split(".")[1] not in rooms)
    ] == []


def test_importing_the_command_line_loads_nothing_heavy_and_no_numpy() -> None:
    assert not imported_by("import dim.cli.main").intersection((*HEAVY, "numpy", "PIL", "fsspec"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["", "distill", "export", "generate", "eval", "bench", "view", "inspect", "verify", "doctor"]
)
def test_help_loads_nothing_heavy_and_no_numpy(command: str) -> None:
    code = f"""
from dim.cli.main import main
try:
    main({[*command.split(), "--help"]})
except SystemExit as end:
    assert not end.code
"""
    assert not imported_by(code).intersection((*HEAVY, "numpy", "PIL", "fsspec"))


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """List the dim modules that a file imports, and whether at the top level of the file."""
    tree = ast.parse((ROOT / path).read_bytes())
    top = {id(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)} - {
        id(inner)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(function, ast.If) and ast.unparse(function.test) == "TYPE_CHECKING")
        for inner in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def sources(folder: str) -> list[Path]:
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))  # does not follow the links
    return sorted(path for path in files if path.parts[:2] not in LINKS)


@pytest.mark.parametrize("path", sources("runtime"), ids=str)
def test_the_runtime_imports_nothing_of_ours_but_itself(path: Path) -> None:
    ours = [name for name, _ in imports_of(path) if name.partition(".")[0] == "dim"]
    assert [name for name in ours if not name.startswith(("dim.runtime.", "dim.version."))] == []


@pytest.mark.parametrize("path", sources("runtime"), ids=str)
def test_the_runtime_imports_heavy_packages_only_inside_functions(path: Path) -> None:
    at_top = {name.partition(".")[0] for name, top in imports_of(path) if top}
    assert at_top.isdisjoint((*HEAVY, "PIL", "fsspec"))


@pytest.mark.parametrize("path", sources("cli"), ids=str)
def test_the_command_line_imports_dim_and_export_only_inside_commands(path: Path) -> None:
    at_top = {name for name, top in imports_of(path) if top and name.startswith("dim.")}
    assert [n for n in at_top if not n.startswith(("dim.cli.", "dim.runtime.", "dim.version.", "dim.cli"))] == []


FRONT_DOOR = [Path("dim/__init__.py"), Path("dim/__main__.py")]


@pytest.mark.parametrize("path", [path for path in sources("dim") if path not in FRONT_DOOR], ids=str)
def test_dim_imports_neither_export_nor_the_command_line(path: Path) -> None:
    assert [name for name, _ in imports_of(path) if name.startswith(("dim.export", "dim.cli"))] == []
