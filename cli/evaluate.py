"""`dim eval`: accuracy on real images of classifiers trained on a bundle's images."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim.cli.data_options import DATA_HELP, DataDirOption, takes_data_options
from dim.cli.interruption import explain_interruption
from dim.cli.options import (
    JsonOption,
    ReportOption,
    Sha256Option,
    choose_bundle,
    complete_from,
    engine_option,
    open_report,
)
from dim.cli.parsing import expand_home, parse_duration, parse_names, parse_numbers, parse_percents, read_device
from dim.cli.terminal import print_json, print_line, print_rich, require_training_extra, say
from dim.runtime.engines.names import OFFERED_ENGINES, describe_unknown
from dim.runtime.errors import BadValueError
from dim.runtime.units import format_duration

if TYPE_CHECKING:
    from dim.evaluation.measure import Evaluation

GENERATED = "generated"
"""What tables call the bundle itself, beside those to compare."""
_protocol_option = partial(typer.Option, rich_help_panel="Protocol")
_images_option = partial(typer.Option, rich_help_panel="Images themselves")
_machine_option = partial(typer.Option, rich_help_panel="Machine")


@takes_data_options
def evaluate(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The dataset that the bundle was distilled from, read with the same options; needed unless it was a "
            "known set. " + DATA_HELP
        ),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            help="The bundle, as in dim generate; repeated for several generators of one recipe, which share a row."
        ),
    ] = None,
    sha256: Sha256Option = None,
    out: Annotated[
        Path | None, typer.Option(callback=expand_home, help="Folder of the results; eval/NAME if left out.")
    ] = None,
    data_dir: DataDirOption = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=BUNDLE",
            help="Another bundle of the same dataset; may be repeated. Several of one name are generators of one "
            "recipe, which share a row.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what --out already holds.")] = False,
    *,
    reading: dict[str, Any],
    record: Annotated[
        bool, typer.Option("--record", help="Write the measured accuracy into the bundle's manifest.")
    ] = False,
    preset: Annotated[
        str,
        _protocol_option(
            help="quick (a tenth of the epochs, a narrow ConvNet-3), full (the published protocol), or reference (that "
            "of the DiM code: 4,000 steps of 25 at ten images per class)."
        ),
    ] = "quick",
    modes: Annotated[str | None, _protocol_option("--mode", help="fixed, stream or both, as in fixed,stream.")] = None,
    ipcs: Annotated[
        str | None, _protocol_option("--ipc", help="Images per class, in the order to run: 10,50,1.")
    ] = None,
    archs: Annotated[str | None, _protocol_option("--arch", help="Classifiers: convnet3,resnet18.")] = None,
    width: Annotated[int | None, _protocol_option(help="Width of every classifier, for quick looks.")] = None,
    seeds: Annotated[
        int | None,
        _protocol_option(help="Students per row, with seeds 0, 1, 2, ...; 0 for --quality and --privacy alone."),
    ] = None,
    epochs: Annotated[int | None, _protocol_option(help="Published: 1000; scales both modes alike.")] = None,
    recipe: Annotated[
        str | None,
        _protocol_option(
            help="default; published, or reference (the same in the batches of the DiM code); condensation (the "
            "student of DSA and DM), or condensation-all (with every augmentation at once). Or holdout, the best of "
            "nine on real images held out of the training split; or the recipe.json of such a choice."
        ),
    ] = None,
    controls: Annotated[
        str,
        _protocol_option(
            help="What stands beside the bundle: real (as many real images, or steps), archive (the best compressed "
            "archive of real images in as many bytes), both, or none."
        ),
    ] = "real,archive",
    soft: Annotated[
        bool, _protocol_option("--soft", help="Add rows with the soft labels of the bundle's teacher.")
    ] = False,
    real_percents: Annotated[
        str | None,
        _protocol_option(
            "--with-real",
            metavar="PERCENT",
            help="Add rows: 1,5,10 % of the real images alone, and with generated ones in every batch.",
        ),
    ] = None,
    whole_epochs: Annotated[int, _protocol_option(help="Add a row: so many epochs over the whole training split.")] = 0,
    device: Annotated[str, _machine_option(callback=read_device, help="auto, cpu or gpu, for the students.")] = "auto",
    jobs: Annotated[
        int | None, _machine_option(help="Students trained side by side; as many as pay if left out.")
    ] = None,
    threads: Annotated[int | None, _machine_option(help="CPU threads in all.")] = None,
    time_limit: Annotated[str | None, _machine_option(help="Start no student after this time, as 9m or 1h30m.")] = None,
    no_graphs: Annotated[
        bool, _machine_option("--no-graphs", help="On a GPU, no CUDA graphs for the students.")
    ] = False,
    no_compile: Annotated[
        bool, _machine_option("--no-compile", help="On a CPU, no torch.compile for the students.")
    ] = False,
    engine: Annotated[
        str,
        engine_option(
            "--engine",
            help="What draws the images: auto, a name that dim doctor lists, or torch, on the students' device.",
            autocompletion=complete_from("auto", *OFFERED_ENGINES, "torch"),
        ),
    ] = "auto",
    precision: Annotated[
        str,
        engine_option(
            "--precision",
            help="Of the images: auto (bf16 where this processor multiplies it and OpenVINO is installed, else fp32), "
            "fp32, bf16, fp16 or int8.",
            autocompletion=complete_from("auto", "fp32", "bf16", "fp16", "int8"),
        ),
    ] = "auto",
    report: ReportOption = False,
    quality: Annotated[
        bool,
        _images_option(
            "--quality",
            help="Compare the bundle's images with real ones: FD, KID, precision, recall, density, coverage.",
        ),
    ] = False,
    privacy: Annotated[
        bool,
        _images_option(
            "--privacy",
            help="Look for copies of training images among the bundle's; nearest-pairs.png shows the nearest.",
        ),
    ] = False,
    features: Annotated[
        str | None,
        _images_option(
            metavar="MODULE:FUNCTION",
            help="What both compare by, from uint8 images to numbers; a classifier trained on real images if left out.",
        ),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every table: bytes, accuracy per class, the protocol.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what classifiers learn from generated images.

    Fresh classifiers are trained on what the bundle draws and, as controls, on real images, and tested once on the real
    test split. Each student is a file in --out, so the same command goes on where an earlier one ended.

    Example:  [bold]dim eval --bundle runs/digits/digits.dim --data digits --ipc 10 --epochs 100[/bold]
    """
    with require_training_extra():
        if find_spec("torch") is None:  # told before any data is fetched
            raise ModuleNotFoundError(name="torch")
        from dim.data.cautions import find_cautions
        from dim.evaluation.protocol import PROTOCOLS, Execution
        from dim.evaluation.subjects import load_source_data
        from dim.export.record_accuracy import record_accuracy
        from dim.students.recipes import read_recipe
    from dim.runtime.bundle_format.files import load_manifest
    from dim.runtime.engines.base import EngineOptions

    if preset not in PROTOCOLS:
        raise BadValueError(f"There is no preset {preset!r}; there are {', '.join(PROTOCOLS)}.")
    if seeds is not None and seeds < 0:
        raise BadValueError(f"--seeds is {seeds}; it must be a whole number from 0.")
    asked: dict[str, Any] = {
        "modes": None if modes is None else parse_names(modes),
        "recipe": read_recipe(Path(recipe)) if recipe and recipe.endswith(".json") else recipe,
        "ipcs": None if ipcs is None else parse_numbers("--ipc", ipcs),
        "archs": None if archs is None else parse_names(archs),
        "width": width,
        "seeds": None if seeds is None else tuple(range(seeds)),
        "epochs": epochs,
    }
    protocol = replace(
        PROTOCOLS[preset],
        labels=("hard", "soft") if soft else ("hard",),
        controls=() if controls == "none" else parse_names(controls),
        whole_epochs=whole_epochs,
        real_percents=() if real_percents is None else parse_percents("--with-real", real_percents),
        quality=quality,
        privacy=privacy,
        features=features or "",
        **{name: value for name, value in asked.items() if value is not None},
    )
    if engine not in ("auto", "torch", "fake", *OFFERED_ENGINES):
        raise BadValueError(describe_unknown(engine, ("auto", "torch", *OFFERED_ENGINES)))
    execution = Execution(
        device=device,
        threads=threads,
        jobs=jobs,
        graphs=not no_graphs,
        compile="off" if no_compile else "auto",
        engine=EngineOptions(engine="auto" if engine == "torch" else engine, precision=precision),
        torch_draws=engine == "torch",
        resume=not fresh,
        time_limit_s=None if time_limit is None else parse_duration(time_limit),
    )
    others = parse_bundles(compare or [])
    paths = [choose_bundle(wanted, sha256 if number == 0 else None) for number, wanted in enumerate(bundle or [None])]
    path = paths[0]
    manifest = load_manifest(path)
    folder = out or Path("eval") / manifest.name
    again = "the same command without --fresh" if fresh else "the same command"
    with explain_interruption(f"Students that are finished are kept in {folder}: {again} goes on."):
        images = load_source_data(manifest, data, asked=reading, data_dir=data_dir, say=say, progress=True)
        with require_training_extra():  # only now, so that faults of the data are told at once
            from dim.evaluation.evaluate import evaluate as run_evaluation
        evaluation = run_evaluation(
            {GENERATED: path if len(paths) == 1 else tuple(paths), **others},
            images,
            protocol,
            execution,
            out=folder,
            for_record=record,
            say=say,
            progress=True,
        )
    if record and evaluation.finished:
        record_accuracy(path, evaluation.rows, evaluation.found)
        say(f"Recorded in {path}.")
    if as_json:
        print_json(
            {"out": evaluation.out, "finished": evaluation.finished, "rows": evaluation.rows, **evaluation.found}
        )
    elif evaluation.results or evaluation.found:
        _print_evaluation(evaluation, find_cautions(images), images.classes, show_all=show_all)
    if report and (evaluation.results or evaluation.found):
        open_report(evaluation.out)


def _print_evaluation(
    evaluation: "Evaluation", cautions: tuple[str, ...], classes: tuple[str, ...], *, show_all: bool
) -> None:
    """Print one screen: the answer in words, the accuracies, and what to doubt; with `show_all` everything."""
    from dim.evaluation.answer import answer_in_words, list_warnings
    from dim.evaluation.table import (
        accuracy_table,
        class_table,
        copies_table,
        cost_table,
        mixed_table,
        quality_table,
    )

    rows, found = evaluation.rows, evaluation.found
    for sentence in answer_in_words(rows):
        print_line(sentence)
    if "privacy" in found:
        print_line(found["privacy"]["verdict"])
    if rows:
        print_rich(accuracy_table(rows, caption=show_all))
    if "quality" in found:
        print_rich(quality_table(found["quality"], by_class=show_all))
    if "privacy" in found and show_all:
        print_rich(copies_table(found["privacy"]))
    if any(row["source"] == "mixed" for row in rows):
        print_rich(mixed_table(rows))
    if show_all and rows:
        print_rich(cost_table(rows))
        print_rich(class_table(rows, classes))
    for warning in list_warnings(rows):
        print_line(f"Caution: {warning}")
    for caution in cautions:
        print_line(f"Caution about the data: {caution}.")
    files = ["results.json", *["accuracy.png"] * bool(rows), *["nearest-pairs.png"] * ("privacy" in found)]
    files.append("report.html")
    seconds = sum(row["seconds_per_student"] * len(row["seeds"]) for row in rows)
    trained = f"; students trained for {format_duration(seconds)} in all" if rows else ""
    more = "" if show_all else "; --all shows more"
    print_line(f"In {evaluation.out}: {', '.join(files)}{trained}{more}.")


def parse_bundles(entries: list[str]) -> dict[str, tuple[Path, ...]]:
    """Read `NAME=BUNDLE` entries; a name given again has several bundles.

    Raises:
        BadValueError: another form, or the name of the bundle itself.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise BadValueError(f"--compare got {entry!r}; it takes NAME=BUNDLE, as in first=runs/first/mnist.dim.")
        if name == GENERATED:
            raise BadValueError(f"Two bundles are called '{name}': give the one to compare with another name.")
        found[name] = (*found.get(name, ()), Path(path))
    return found
