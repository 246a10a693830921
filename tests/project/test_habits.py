"""The files that a forge and a newcomer look for: they agree with the code, and every path in them exists."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_pages import load_sentences

from dim.version import __version__

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHECK = (ROOT / "scripts" / "check").read_text()
FORGE = sorted(path for path in (ROOT / ".github").rglob("*.yml"))
SENTENCES = load_sentences()
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "Dockerfile", "lab/README.md")


@pytest.mark.parametrize("path", FORGE, ids=lambda path: path.name)
def test_the_forge_can_read_the_file(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_ci_runs_every_python_that_the_package_names() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert any(step.get("run", "").startswith("make test") for step in workflow["jobs"]["test"]["steps"])


def test_hooks_are_the_first_lines_of_the_checks() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"] for hook in repository["hooks"]]
    stages = re.findall(r'^run_stage "[^"]+" (.+)$', CHECK, re.MULTILINE)
    assert stages[:-1] == entries and "pytest" in stages[-1]


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == __version__


def test_the_paper_is_cited_with_its_authors() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert names == ["Kai Wang", "Jianyang Gu", "Daquan Zhou", "Zheng Zhu", "Wei Jiang", "Yang You"]


@pytest.mark.parametrize("page", SENTENCES.find_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path) -> None:
    """`python scripts/sentences.py PAGE` lists those that are not."""
    lengths, long = SENTENCES.measure([page])
    assert [sentence for _, _, sentence in long] == []
    assert not lengths or sum(lengths) / len(lengths) <= SENTENCES.MAX_MEAN_WORDS


def test_every_page_of_the_documentation_is_in_the_navigation() -> None:
    """A new page below docs/ needs a line in zensical.toml."""
    settings = (ROOT / "zensical.toml").read_text()
    named = re.findall(r'= "([\w/.-]+\.md)"', settings)
    pages = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(named) == pages


def test_every_example_is_on_the_site() -> None:
    """A new example needs a link in docs/examples, from where its file can be downloaded, and a row of its index."""
    examples = {path.name for path in (ROOT / "examples").iterdir() if path.is_file()}
    links = {path.name: os.readlink(path) for path in (ROOT / "docs" / "examples").iterdir()}
    assert links == {name: f"../../examples/{name}" for name in examples}
    index = (ROOT / "examples" / "README.md").read_text()
    assert set(re.findall(r"\]\(([^)/]+)\)", index)) == examples - {"README.md"}


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_is_named_exists(name: str) -> None:
    """Words in backquotes that look like a path of ours, and links."""
    text = (ROOT / name).read_text()
    words = re.findall(r"`([\w./-]+)`", text) + re.findall(r"\]\(([\w./-]+)\)", text)
    tops = {path.name for path in ROOT.iterdir()}
    beside = (ROOT / name).parent
    paths = [word for word in words if "/" in word and word.split("/")[0] in tops]
    assert [path for path in paths if not (ROOT / path).exists() and not (beside / path).exists()] == []


def test_every_row_of_where_do_i_change_x_leads_to_its_name() -> None:
    table = CONTRIBUTING.split("## Where do I change X?")[1].split("\n## ")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 20
    for _, wish, answer, _ in rows:
        words = re.findall(r"`([\w/.]+)`", answer)
        text = (ROOT / words[0]).read_text() if words[0].endswith(".py") else ""
        names = [word for word in words[1:] if word.isidentifier() and word != "sampling_version"]
        assert text and all(re.search(rf"\b{name}\b", text) for name in names), f"{wish}:{answer}"


def test_the_floors_are_those_of_the_import_rules() -> None:
    contracts = {contract["name"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
    for package in ("dim", "dim.runtime"):
        layers = [re.split(r" [|:] ", layer) for layer in contracts[f"the floors of {package}"]["layers"]]
        table = CONTRIBUTING.split(f"| `{package}` | holds |")[1].split("\n\n")[0]
        floors = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
        assert floors == [layer for layer in layers if layer not in (["__main__"], ["version"])], package


def test_nobody_is_made_up() -> None:
    assert PROJECT["authors"] == [{"name": "the dim authors"}] and "urls" not in PROJECT
    for name in PAGES:
        assert not re.search(r"[\w.]+@[\w-]+\.\w+", (ROOT / name).read_text()), name
