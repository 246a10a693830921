"""The documentation site: it builds strictly and offline, asks no other host for anything, has every public name."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dim

ROOT = Path(__file__).parents[2]
LOADING = {
    "script": ["src"], "img": ["src", "srcset"], "source": ["src", "srcset"], "iframe": ["src"], "video": ["src"],
    "audio": ["src"], "embed": ["src"], "object": ["data"], "form": ["action"], "use": ["href"], "image": ["href"],
}  # fmt: skip
"""What a browser fetches without a click, by tag; of `link` see below."""
DRAWN_BY_OTHERS = {"mermaid", "glightbox", "pyodide"}
"""Classes for which the theme's script would fetch a library from another host."""


class Page(HTMLParser):
    """What a page fetches, and the classes of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.policies: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        names = LOADING.get(tag, [])
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            names = ["href"]
        self.fetched += [found[name] for name in names if name in found]
        self.fetched += re.findall(r"url\(['\"]?([^)'\"]+)", found.get("style", ""))
        self.classes |= set(found.get("class", "").split())
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(found["content"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, from a copy, where no proxy answers."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    settings = (ROOT / "zensical.toml").read_text()
    assert 'paths = ["."]' in settings
    (folder / "zensical.toml").write_text(settings.replace('paths = ["."]', f'paths = ["{ROOT}"]'))
    nowhere = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"
    )
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        env=os.environ | nowhere | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", built.stdout + built.stderr)
    assert built.returncode == 0 and "No issues found" in said and "griffe:" not in said, said[-4000:]
    return folder / "build" / "site"


@pytest.mark.slow
def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert {path.parent / "index" if path.name == "README" else path for path in pages} == built - {Path("404")}


@pytest.mark.slow
def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Page(path.read_text())
        outside = [target for target in page.fetched if "://" in target or target.startswith("//")]
        assert outside == [] and not page.classes & DRAWN_BY_OTHERS, path
        assert page.policies == ["default-src 'self' file: data: blob: 'unsafe-inline'"], path
    for path in site.rglob("*.css"):
        found = re.findall(r"@import[^;]+|url\(['\"]?[^)'\"]+", path.read_text())
        assert [each for each in found if "//" in each and "data:" not in each] == [], path
    assert not list(site.rglob("*.woff*"))


@pytest.mark.slow
def test_every_public_name_is_on_a_page(site: Path) -> None:
    text = "\n".join(path.read_text() for path in (site / "reference" / "api").glob("*.html"))
    for name in [*dim.__all__, *(f"torch.{name}" for name in dim.torch.__all__)]:
        assert name == "__version__" or f'id="dim.{name}"' in text, f"dim.{name} has no line in docs/reference/api"


@pytest.mark.slow
def test_what_a_public_name_holds_is_documented() -> None:
    """Every argument of a function on the API pages and every field of a class has its sentence."""
    import griffe

    package = griffe.load("dim", search_paths=[str(ROOT)])
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference" / "api").glob("*.md"))
    for path in re.findall(r"^::: (\S+)", pages, re.MULTILINE):
        thing = package[path.removeprefix("dim.")]
        thing = thing.final_target if thing.is_alias else thing
        assert thing.docstring, path
        if thing.is_function:
            assert _undocumented(thing) == set(), path
        for name, member in thing.members.items() if thing.is_class else ():
            if member.is_alias or name.startswith("_"):
                continue
            assert member.docstring, f"{path}.{name}"
            if member.is_function:
                assert _undocumented(member) == set(), f"{path}.{name}"


def _undocumented(function: object) -> set[str]:
    docstring = function.docstring.value  # type: ignore[attr-defined]
    names = {parameter.name for parameter in function.parameters} - {"self"}  # type: ignore[attr-defined]
    documented = set(re.findall(r"^    (\w+): ", docstring, re.MULTILINE))
    return names - documented if "\nArgs:\n" in docstring or len(names) > 1 else set()


def test_a_page_from_elsewhere_would_be_seen() -> None:
    page = Page(
        '<link rel="stylesheet" href="https://fonts.example/a.css"><script src="//cdn.example/x.js"></script>'
        '<a href="https://example.org">x</a><div class="mermaid" style="background: url(https://example.org/y.png)">'
    )
    assert page.fetched == ["https://fonts.example/a.css", "//cdn.example/x.js", "https://example.org/y.png"]
    assert page.classes == {"mermaid"}
