"""Write the cards of the repository's bundles anew, and docs/reference/shipped.md, which lists them by their hashes.

Run it whenever a bundle under runtime/shipped/ or bundles/ is replaced, or a preset changes, because cards name every
field in which their run differs from the preset:  python scripts/shipped.py
"""

from pathlib import Path

from dim.export.record_accuracy import record_accuracy
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.locate import SHIPPED

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "shipped.md"
HEAD = """# Shipped bundles

This page is written by `scripts/shipped.py`. The bundles under `runtime/shipped/` come with the package. Those under
`bundles/` lie beside it in the repository, because they are too large for a wheel. A test compares them with this page,
so no bundle changes without a change here.

`manifest_sha256` covers every byte of a bundle, `content_id` what it draws. `dim verify` checks a bundle against its
own manifest, and `dim inspect --all` prints both hashes. `--sha256 MANIFEST_SHA256` refuses any other bundle.
"""


def find_bundles() -> list[Path]:
    """List every bundle of the repository: the package's, then those beside it."""
    return sorted(SHIPPED.parent.glob("*.dim")) + sorted((ROOT / "bundles").glob("*.dim"))


def render_page() -> str:
    """Write the whole page as Markdown."""
    parts = [HEAD]
    for folder in find_bundles():
        manifest = load_manifest(folder)
        rows = {
            "lies in": "`bundles/`" if folder.parent.name == "bundles" else "`runtime/shipped/`, and every wheel",
            "`manifest_sha256`": f"`{manifest.manifest_sha256}`",
            "`content_id`": f"`{manifest.content_id}`",
            "made by": manifest.created_by,
            "distilled with": f"preset `{manifest.distill_config['preset']}`, seed {manifest.distill_config['seed']}",
            "from": f"{manifest.source.name}, {manifest.source.licence}",
            "bytes": f"{sum(record.size_bytes for record in manifest.files.values()):,}",
        }
        parts.append(f"\n## {folder.name}\n\n| | |\n|---|---|\n")
        parts += [f"| {name} | {value} |\n" for name, value in rows.items()]
        parts.append("\n| file | SHA-256 |\n|---|---|\n")
        parts += [f"| {name} | `{record.sha256}` |\n" for name, record in sorted(manifest.files.items())]
    return "".join(parts)


if __name__ == "__main__":
    for bundle in find_bundles():
        record_accuracy(bundle, ())
    PAGE.write_text(render_page())
