"""`dim distill`: a labelled image dataset becomes a run directory."""

import json
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim.cli.data_options import DATA_HELP, DataDirOption, make_data_options, takes_data_options
from dim.cli.interruption import stop_on_signal
from dim.cli.options import JsonOption, ReportOption, complete_from, open_report, output_option
from dim.cli.parsing import expand_home, parse_duration, read_device
from dim.cli.terminal import print_json, print_line, require_training_extra, say
from dim.runtime.cores import check_threads
from dim.runtime.errors import BadValueError, RunError
from dim.runtime.units import format_duration

if TYPE_CHECKING:
    from dim.config import DistillConfig
    from dim.data.image_set import ImageSet
    from dim.distillation.estimate import Estimate
    from dim.runs.record import RunRecord

_recipe_option = partial(typer.Option, rich_help_panel="Recipe")
_machine_option = partial(typer.Option, rich_help_panel="Machine")
_OPTIONS = {
    "seed": "--seed",
    "stage1.steps": "--steps",
    "stage2.steps": "--matching-steps",
    "matching.loss": "--matching-loss",
}
"""Options that stand for fields of the configuration."""


@takes_data_options
def distill(
    data: Annotated[
        list[str] | None, typer.Option(help=f"{DATA_HELP} Needed, but for --resume, which reads the run's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=expand_home, help="The run directory; runs/NAME if left out.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="tiny, small, best or paper: where all settings start; small if left out.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with the data and settings that it has.")
    ] = False,
    from_stage1: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Begin with the finished stage 1 of another run, and its pool; the options of stage 2 may differ.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels, 8 to 128.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour.")] = None,
    data_dir: DataDirOption = None,
    *,
    reading: dict[str, Any],
    seed: Annotated[int | None, _recipe_option(help="Fixes everything that is random; 0 if left out.")] = None,
    steps: Annotated[int | None, _recipe_option(help="Steps of stage 1, the GAN.")] = None,
    matching_steps: Annotated[
        int | None, _recipe_option(help="Steps of stage 2, the matching; 0 leaves it out.")
    ] = None,
    matching_loss: Annotated[
        str | None, _recipe_option(help="The loss of stage 2; `paper` is the published one, at its published weight.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _recipe_option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of the configuration, as in generator.width=48; may be repeated.",
        ),
    ] = None,
    device: Annotated[str, _machine_option(callback=read_device, help="auto, cpu or gpu.")] = "auto",
    threads: Annotated[int | None, _machine_option(help="CPU threads; every core it may use if left out.")] = None,
    time_limit: Annotated[str | None, _machine_option(help="Stop at a checkpoint after this time: 9m, 1h30m.")] = None,
    log: Annotated[
        str,
        output_option(
            help="jsonl for metrics.jsonl alone, tensorboard for event files too.",
            autocompletion=complete_from("jsonl", "tensorboard"),
        ),
    ] = "jsonl",
    report: ReportOption = False,
    dry_run: Annotated[
        bool,
        output_option(
            "--dry-run",
            help="Read the data, time a few steps of each part, say what a run would take, and keep nothing.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a labelled image dataset into a generator.

    Stage 1 trains a conditional GAN; stage 2 matches a pool of classifiers' outputs for real and generated images.
    Ctrl-C stops at a checkpoint, and  dim distill --resume --out RUN  goes on. Several GPUs:
    torchrun --nproc-per-node 2 -m dim distill ...

    Example:  [bold]dim distill --data digits --preset tiny --out runs/digits[/bold]
    """
    limit_s = None if time_limit is None else parse_duration(time_limit)
    fields = parse_settings(settings or [])
    if "seed" in fields:
        raise BadValueError("The seed also cuts the test split of data that has none: use --seed, not --set.")
    named = {"seed": seed, "stage1.steps": steps, "stage2.steps": matching_steps, "matching.loss": matching_loss}
    overrides = {field: value for field, value in named.items() if value is not None} | fields
    typed = {field: option for field, option in _OPTIONS.items() if field not in fields}
    typed |= {field: f"--set {field}" for field in fields}
    if device not in ("auto", "cpu", "gpu"):
        raise BadValueError(f"There is no device named {device!r}: choose auto, cpu or gpu.")
    check_threads(threads)

    with require_training_extra():
        if find_spec("torch") is None:  # told before any data is fetched
            raise ModuleNotFoundError(name="torch")
        from dim.data.load import load_data, name_source
        from dim.data.options import read_options
        from dim.presets import change_fields, check_overrides
        from dim.runs.record import refuse_second_run
        from dim.runs.tensorboard import check_log
    asked = {"size": size, "channels": channels, "seed": seed} | reading
    asked = {name: value for name, value in asked.items() if value is not None}
    options = make_data_options(**asked)
    run_dir = out or Path("runs") / str(name_source(data or []))
    begun = _read_begun(run_dir, preset) if resume and (out or data) else None
    name = None
    if begun is not None:
        options = replace(read_options(begun.data.reading), **asked)
    if not data:
        name, data, data_dir = _find_data(run_dir, begun, data_dir, resume)
    config: DistillConfig | str = begun.config if begun is not None else preset or "small"
    check_overrides(config, overrides, typed)
    check_log(log)
    if not isinstance(config, str):
        config, overrides = change_fields(config, overrides), {}

    is_main = os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes; one of them speaks
    if is_main and not (resume or dry_run):
        refuse_second_run(run_dir)
    speak = say if is_main else lambda line: None
    started = time.monotonic()
    images = load_data(data, options, name=name, data_dir=data_dir, say=speak, progress=is_main, asked=reading)
    with require_training_extra():  # only now, so that faults of the data are told at once
        from dim.distillation import distill as library
        from dim.distillation.estimate import estimate
        from dim.execution.threads import default_threads
        from dim.runs.folder import describe_kept
    threads = default_threads() if threads is None else threads
    if dry_run:
        speak("Timing a few steps of each part.")
        found = estimate(images, config, overrides=overrides, device=device, threads=threads)
        if is_main:
            _print_estimate(images, found, as_json)
        return
    # Several processes would have to agree on where to stop, and torchrun sends the signal twice.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    try:
        with stop_on_signal(speak) if alone else nullcontext() as stop:
            result = library.distill(
                images,
                config,
                run_dir,
                overrides=overrides,
                resume=resume,
                from_stage1=from_stage1,
                device=device,
                threads=threads,
                time_limit_s=limit_s,
                stop=stop,
                log=log,
                say=speak,
                progress=is_main,
            )
    except KeyboardInterrupt:
        speak(describe_kept(run_dir))
        raise
    if stop is not None and stop.is_set() and not result.finished:
        stop.end_by_signal()
    if is_main:
        _report(run_dir, result.finished, time.monotonic() - started, as_json)
        if report:
            open_report(run_dir)


def _read_begun(run_dir: Path, preset: str | None) -> "RunRecord | None":
    """Read the record of the run that is to go on; None where there is none yet."""
    from dim.runs.folder import read_begun_run
    from dim.runs.record import CONFIG_FILE

    if not (run_dir / CONFIG_FILE).exists():
        return None
    begun = read_begun_run(run_dir)
    if preset not in (None, begun.config.preset):
        raise RunError(
            f"{run_dir} holds a run of preset {begun.config.preset}, not {preset}: leave --preset out, because "
            "--resume takes that of the first call; or choose another --out."
        )
    return begun


def _find_data(
    run_dir: Path, begun: "RunRecord | None", data_dir: Path | None, resume: bool
) -> tuple[str, list[str], Path | None]:
    """Find out what a run that goes on is to read: the data's name, their places, and where the official files lie."""
    from dim.runs.record import read_data_places

    if not resume:
        raise typer.BadParameter("Name what to distil.", param_hint="--data")
    if begun is None:
        raise RunError("There is no run to resume: name its folder by --out, or begin one by --data.")
    places = read_data_places(run_dir)
    if places is None:
        raise RunError(f"{run_dir} does not say where its data lie: name them by --data.")
    return begun.data.name, list(places.places), data_dir or (Path(places.data_dir) if places.data_dir else None)


def _print_estimate(images: "ImageSet", found: "Estimate", as_json: bool) -> None:
    counts, num_test = images.class_counts, len(images.test_labels)
    if as_json:
        data = {"name": images.name, "classes": images.classes, "class_counts": counts, "test_images": num_test}
        data |= {"image_px": images.height, "channels": images.channels, "note": images.note}
        print_json({"data": data} | vars(found) | {"seconds": found.seconds})
        return
    where = "on disk, read batch by batch" if found.images_on_disk else "in memory"
    least = min(counts) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    print_line(f"Data:    {images.name}, {len(counts)} classes, {sum(counts)} training images ({least} per class)")
    print_line(f"         and {num_test} test images of {images.height} x {images.width} x {images.channels}")
    megabytes = f"{found.image_bytes / 1e6:.1f} MB"
    print_line(f"Memory:  {found.peak_bytes / 1e9:.1f} GB at most; the images are {megabytes}, {where}")
    for part, count in found.steps.items():
        print_line(f"{part + ':':<8} {count} steps of {found.seconds_per_step[part]:.3g} s")
    print_line(f"In all:  about {format_duration(found.seconds)} here, and the choice of latents afterwards")


def _report(run_dir: Path, finished: bool, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json({"run_dir": run_dir, "finished": finished, "seconds": seconds})
        return
    print_line(f"{'Distilled' if finished else 'Stopped'} after {format_duration(seconds)}: {run_dir}")
    for what, where in (
        ("samples", "grids"),
        ("curves", "curves.png"),
        ("metrics", "metrics.jsonl"),
        ("report", "report.html"),
    ):
        print_line(f"  {what + ':':<9}{run_dir / where}")


def parse_settings(entries: list[str]) -> dict[str, Any]:
    """Read `generator.width=48`: a field with dots, and a value that is JSON or else text.

    Raises:
        BadValueError: an entry without a field or a value.
    """
    settings: dict[str, Any] = {}
    for entry in entries:
        field, equals, text = entry.partition("=")
        if not equals or not field.strip():
            raise BadValueError(f"--set got {entry!r}; it takes FIELD=VALUE, as in generator.width=48.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[field.strip()] = tuple(value) if isinstance(value, list) else value
    return settings
