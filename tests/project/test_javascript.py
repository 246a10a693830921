"""js/: pinned packages without an address, the files of the demo page, the same look as the gallery."""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
JS = ROOT / "js"


def test_packages_are_pinned_and_the_lock_names_no_place() -> None:
    package = json.loads((JS / "package.json").read_text())
    assert "dependencies" not in package
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["devDependencies"].values())
    text = (JS / "package-lock.json").read_text()
    assert "://" not in text and '"resolved"' not in text
    locked = json.loads(text)["packages"]
    assert locked[""]["devDependencies"] == package["devDependencies"]
    assert all("integrity" in entry for name, entry in locked.items() if name)
    assert "omit-lockfile-registry-resolved=true" in (JS / ".npmrc").read_text()


def test_no_page_names_another_host() -> None:
    """Links may; what is loaded may not."""
    pages = [*(JS / "demo").glob("*"), *(JS / "src").glob("*"), *(ROOT / "runtime" / "gallery" / "page").glob("*")]
    texts = {path: path.read_text() for path in pages if path.suffix in (".html", ".css", ".js")}
    assert len(texts) > 10
    for path, text in texts.items():
        loaded = re.findall(r"""(?:src|href|import|from|url)\s*[=(]?\s*["'](\w*://[^"']+)""", text)
        assert [address for address in loaded if not address.startswith("https://creativecommons.org/")] == [], path


def test_the_shell_scripts_parse() -> None:
    for script in ("scripts/test-web", ".ci/run"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-2:] == ["make test", "make test-web"]
