"""`dim export`: a run becomes a bundle, a bundle gets further precisions and compiled engines."""

from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from dim.cli.interruption import explain_interruption
from dim.cli.options import JsonOption
from dim.cli.parsing import expand_home
from dim.cli.terminal import print_json, print_line, require_training_extra, say
from dim.runtime.errors import BadValueError, RunError
from dim.runtime.units import format_units

FORMATS = ("onnx", "trt", "rtx")
_compile_option = partial(typer.Option, rich_help_panel="Compile engines")


@explain_interruption("Files that are finished are kept, and none is left unfinished: the same command begins anew.")
def export(
    source: Annotated[
        Path | None,
        typer.Argument(
            callback=expand_home,
            help="A run directory; or a bundle, by its folder or the name mnist.",
            metavar="RUN or BUNDLE",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="onnx; trt (TensorRT) or rtx (TensorRT for RTX) compile the ONNX files too.")
    ] = "onnx",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8, joined by commas; a run is always exported as fp32 too.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="The bundle to write; RUN/NAME.dim if left out. hf://USER/NAME.dim puts a run's or a bundle's files "
            "on the Hugging Face Hub."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; the run's if left out.")] = None,
    licence: Annotated[str | None, typer.Option(help="The bundle's licence; the source dataset's if left out.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle at --out; RUN/NAME.dim is replaced without it.")
    ] = False,
    batch: Annotated[str, _compile_option(help="Least, usual and most images per call.")] = "1:256:4096",
    target: Annotated[
        list[str] | None,
        _compile_option(
            help="rtx: a compute capability to build for, as sm89; may be repeated; else every GPU from 8.0 on."
        ),
    ] = None,
    hardware_compatible: Annotated[
        bool, _compile_option("--hardware-compatible", help="trt: for other GPUs from Ampere on too.")
    ] = False,
    version_compatible: Annotated[
        bool, _compile_option("--version-compatible", help="trt: for newer releases of the major version too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a run into a bundle, or compile a bundle's engines.

    Every file is compared with the network it came from before the bundle is called done. On a bundle, trt and rtx need
    only the engine's library, no PyTorch.

    Example:  [bold]dim export runs/digits --precision fp32,fp16[/bold]
    """
    from dim.runtime.bundle_format.hub import is_on_hub, upload_bundle

    if format not in FORMATS:
        raise BadValueError(f"There is no format {format!r}; there are {', '.join(FORMATS)}.")
    precisions = None if precision is None else tuple(word.strip() for word in precision.split(","))
    bundle = _check_source(source)
    on_hub = out if out is not None and is_on_hub(out) else None
    if not (bundle / "manifest.json").exists():
        say(f"Run: {bundle}.")
        with require_training_extra():
            from dim.export.export_run import export_run
        bundle = export_run(
            bundle,
            None if out is None or on_hub else Path(out).expanduser(),
            precisions=precisions or ("fp32",),
            name=name,
            licence=licence,
            overwrite=overwrite,
            say=say,
            progress=True,
        )
    elif (out is not None and not on_hub) or name is not None or licence is not None:
        raise BadValueError(f"{bundle} is a bundle: --out, --name and --licence are for exporting a run.")
    elif format == "onnx":
        if precisions is None and not on_hub:
            raise BadValueError(
                f"{bundle} is a bundle already: say what to add by --precision, or --format trt or rtx."
            )
        say(f"Bundle: {bundle}.")
        if precisions is not None:
            with require_training_extra():
                from dim.export.add_precisions import add_precisions
            add_precisions(bundle, precisions, say=say, progress=True)
    engines = []
    if format != "onnx":
        from dim.runtime.trt.build import build_engines

        engines = build_engines(
            bundle,
            format=format,
            precisions=precisions,
            batch=parse_batch(batch),
            compute_capabilities=target or [],
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            say=say,
            progress=True,
        )
    if on_hub:
        upload_bundle(bundle, on_hub, overwrite=overwrite, say=say)
    _print_bundle(bundle, engines, as_json)


def _check_source(source: Path | None) -> Path:
    """Return the run or bundle to work on; without one, name the runs that there are."""
    if source is None:
        runs = sorted(str(path.parent) for path in Path("runs").glob("*/config.json"))
        found = (
            f"under runs/ lie {', '.join(runs)}" if runs else "there is none under runs/: make one with  dim distill"
        )
        raise BadValueError(f"Name a run or a bundle, as in  dim export {runs[0] if runs else 'runs/mnist'};  {found}")
    if source.is_dir():
        return source
    from dim.runtime.bundle_format.locate import list_names

    if (shipped := list_names().get(str(source))) is not None:
        return shipped
    found = "is a file" if source.exists() else "does not exist"
    raise RunError(f"There is no run directory and no bundle at {source}: it {found}.")


def _print_bundle(bundle: Path, engines: list[Path], as_json: bool) -> None:
    from dim.runtime.bundle_format.files import load_manifest

    manifest = load_manifest(bundle)
    files = {name: record.size_bytes for name, record in sorted(manifest.files.items())}
    if as_json:
        print_json({"bundle": bundle, "content_id": manifest.content_id, "files": files, "engines": engines})
        return
    print_line(f"{bundle}: {', '.join(manifest.precisions)}, {format_units(sum(files.values()), 'B')}")
    for engine in engines:
        print_line(f"  {engine.name}: {format_units(engine.stat().st_size, 'B')}")
    path = str(bundle) if "/" in str(bundle) or bundle.suffix == ".dim" else f"./{bundle}"  # else it is read as a name
    say(f"Next:  dim generate --bundle {quote(path)} --ipc 50 --out data/")


def parse_batch(text: str) -> tuple[int, int, int]:
    """Read `1:256:4096`: least, usual and most images per call.

    Raises:
        BadValueError: anything but three whole numbers.
    """
    words = text.split(":")
    if len(words) != 3 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise BadValueError(f"--batch got {text!r}; it takes least:usual:most images per call, as in 1:256:4096.")
    least, usual, most = (int(word) for word in words)
    return least, usual, most
