"""Write docs/reference/dependencies.md: every pinned package with the version and licence that its metadata state.

Run it after `scripts/pin`, in an environment that `make test` made:  python scripts/licences.py
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "dependencies.md"
HEAD = """# Dependencies

This page is written by `scripts/licences.py` from the packages' own metadata.

Users get ranges (`pyproject.toml`), developers and CI exact versions with hashes (`constraints/*.txt`). The package
itself needs the packages marked "bare"; extras bring the rest. Nothing of them is copied into this repository or into a
wheel.

Known weaknesses in the pinned versions: `pip-audit` looks them up on the internet, so it is no part of `scripts/check`,
which also runs offline. Where there is a connection:

```bash
pip install pip-audit
pip-audit --require-hashes --disable-pip -r constraints/dev.txt
```

| package | version | licence | installed by |
|---|---|---|---|
"""
# What a licence is called where its metadata hold the whole text, or only a classifier.
NAMES = {
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License v2.0": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def read_pins(name: str) -> dict[str, str]:
    """Read the versions that `constraints/<name>.txt` pins on this machine, by package."""
    found = {}
    for line in (ROOT / "constraints" / f"{name}.txt").read_text().splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)(?: ; (.*?))?(?: \\)?$", line)
        if match and (match[3] is None or Marker(match[3]).evaluate()):
            found[match[1]] = match[2]
    return found


def find_licence(package: str) -> str:
    """Find the licence that the metadata of an installed package name."""
    described = metadata.metadata(package)
    expression = described.get("License-Expression")
    if expression:
        return str(expression)
    classified = [c.rpartition(" :: ")[2] for c in described.get_all("Classifier", []) if c.startswith("License :: ")]
    stated = str(described.get("License") or "").strip()
    short = stated if stated and "\n" not in stated and len(stated) < 60 else ""
    named = [name for name in classified if name != "OSI Approved"]
    text = ", ".join(named) or short or "see the package"
    return ", ".join(NAMES.get(part, part) for part in text.split(", "))


def render_page() -> str:
    """Write the whole page as Markdown."""
    dev, demo, torch = read_pins("dev"), read_pins("demo"), read_pins("torch")
    bare = {
        re.split("[<>=~!;]", need)[0].lower() for need in metadata.requires("dim-distill") or [] if "extra" not in need
    }
    rows = []
    for package, version in sorted({**dev, **torch}.items()):
        where = "bare" if package in bare else "`make demo`" if package in demo or package in torch else "`make test`"
        rows.append(f"| {package} | {version} | {find_licence(package)} | {where} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(render_page())
