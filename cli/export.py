"""`dim export`: a run becomes a bundle, a bundle gets compiled engines."""

from pathlib import Path
from typing import Annotated

import typer

from dim.cli.options import JsonOption
from dim.cli.terminal import in_units, print_json, say, training_libraries
from dim.runtime.errors import BadValueError, RunError

FORMATS = ("onnx", "trt", "rtx")
_COMPILE = "Compile engines"


def export(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A run directory, or a bundle; else the newest finished run under runs/, else the default bundle.",
            metavar="[RUN or BUNDLE]",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="onnx; trt (TensorRT) or rtx (TensorRT for RTX) compile the ONNX files too.")
    ] = "onnx",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8, joined by commas; a run is always exported as fp32 too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle to write; RUN/NAME.dim if left out.")] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; the run's if left out.")] = None,
    licence: Annotated[str | None, typer.Option(help="The bundle's licence; the source dataset's if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    batch: Annotated[
        str, typer.Option(help="Least, usual and most images per call.", rich_help_panel=_COMPILE)
    ] = "1:256:4096",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="rtx: a compute capability to build for, as sm89; may be repeated; else every GPU from 8.0 on.",
            rich_help_panel=_COMPILE,
        ),
    ] = None,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="trt: for other GPUs from Ampere on too.", rich_help_panel=_COMPILE),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="trt: for newer releases of the major version too.", rich_help_panel=_COMPILE
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a run into a bundle, or compile a bundle's engines.

    Every file is compared with the network it came from before the bundle is called done. On a bundle, trt and rtx need
    only the engine's library, no PyTorch.

    Example:  [bold]dim export runs/digits --precision fp32,fp16[/bold]
    """
    if format not in FORMATS:
        raise BadValueError(f"There is no format {format!r}; there are {', '.join(FORMATS)}.")
    precisions = None if precision is None else tuple(word.strip() for word in precision.split(","))
    path = _choose_source(source)
    if not _is_bundle(path):
        with training_libraries():
            from dim.export.export_run import export_run
        say(f"Run: {path}.")
        bundle = export_run(
            path, out=out, name=name, precisions=precisions or ("fp32",), licence=licence, overwrite=overwrite, say=say
        )
    elif out is not None or name is not None or licence is not None:
        raise BadValueError(f"{path} is a bundle: --out, --name and --licence are for exporting a run.")
    else:
        bundle = path
        say(f"Bundle: {bundle}.")
    plans = []
    if format != "onnx":
        plans = _compile(bundle, format, precisions, batch, target or [], hardware_compatible, version_compatible)
    elif bundle is path:
        if precisions is None:
            raise BadValueError(f"{path} is a bundle already: say what to add by --precision, or --format trt or rtx.")
        with training_libraries():
            from dim.export.add_precisions import add_precisions
        add_precisions(bundle, precisions, say=say)
    _report(bundle, plans, as_json)


def _choose_source(named: Path | None) -> Path:
    """Return the run or bundle to work on."""
    if named is not None:
        if not named.is_dir():
            found = "is a file" if named.exists() else "does not exist"
            raise RunError(f"There is no run directory and no bundle at {named}: it {found}.")
        return named
    finished = list(Path("runs").glob("*/generator.safetensors"))
    if finished:
        return max(finished, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent
    from dim.runtime.bundle_format.locate import find_bundle

    return find_bundle(None, say=say)[0]


def _is_bundle(path: Path) -> bool:
    return (path / "manifest.json").exists()


def _compile(
    bundle: Path,
    format: str,
    precisions: tuple[str, ...] | None,
    batch: str,
    targets: list[str],
    hardware_compatible: bool,
    version_compatible: bool,
) -> list[Path]:
    from dim.cli.bars import Bars
    from dim.runtime.trt.build import build_engines

    with Bars() as bars:
        return build_engines(
            bundle,
            format=format,
            precisions=precisions,
            batch=parse_batch(batch),
            compute_capabilities=targets,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            say=say,
            progress=lambda what, part: bars.show(what, part, 1.0),
        )


def _report(bundle: Path, plans: list[Path], as_json: bool) -> None:
    from dim.runtime.bundle_format.files import load_manifest

    manifest = load_manifest(bundle)
    files = {name: record.size_bytes for name, record in sorted(manifest.files.items())}
    if as_json:
        print_json({"bundle": bundle, "content_id": manifest.content_id, "files": files, "engines": plans})
        return
    print(f"{bundle}: {', '.join(manifest.precisions)}, {in_units(sum(files.values()), 'B')}")
    for plan in plans:
        print(f"  {plan.name}: {in_units(plan.stat().st_size, 'B')}")


def parse_batch(text: str) -> tuple[int, int, int]:
    """Read `1:256:4096`.

    Raises:
        BadValueError: anything but three whole numbers.
    """
    words = text.split(":")
    if len(words) != 3 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise BadValueError(f"--batch got {text!r}; it takes least:usual:most images per call, as in 1:256:4096.")
    least, usual, most = (int(word) for word in words)
    return least, usual, most
