"""`dim eval`: what classifiers learn from a bundle's images, measured on real ones."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim.cli.options import (
    ENGINE_PANEL,
    ENGINES,
    BundleOption,
    JsonOption,
    PrecisionOption,
    Sha256Option,
    choose_bundle,
    one_of,
)
from dim.cli.parsing import parse_duration, parse_numbers, parse_words
from dim.cli.terminal import in_time, print_json, print_rich, say, training_libraries
from dim.runtime.errors import BadValueError

if TYPE_CHECKING:
    from dim.runtime.bundle_format.manifest import Manifest
    from dim.students.recipes import Recipe

_PROTOCOL, _MACHINE = "Protocol", "Machine"


def evaluate(
    data: Annotated[
        str | None,
        typer.Option(help="The dataset that the bundle was distilled from; needed where it was a folder or file."),
    ] = None,
    bundle: BundleOption = None,
    sha256: Sha256Option = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; eval/NAME if left out.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="DIM_DATA", help="Where the official files are, or go when downloaded.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=BUNDLE", help="Another bundle of the same dataset; may be repeated."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what --out already holds.")] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, as distilling did.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the measured accuracy into the bundle's manifest.")
    ] = False,
    preset: Annotated[
        str,
        typer.Option(
            help="quick (a tenth of the epochs, a narrow ConvNet-3) or full (the published protocol).",
            rich_help_panel=_PROTOCOL,
        ),
    ] = "quick",
    modes: Annotated[
        str, typer.Option("--mode", help="fixed, stream or both.", rich_help_panel=_PROTOCOL)
    ] = "fixed,stream",
    ipcs: Annotated[
        str | None,
        typer.Option("--ipc", help="Images per class, in the order to run: 10,50,1.", rich_help_panel=_PROTOCOL),
    ] = None,
    archs: Annotated[
        str | None, typer.Option("--arch", help="Classifiers: convnet3,resnet18.", rich_help_panel=_PROTOCOL)
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Width of every classifier, for quick looks.", rich_help_panel=_PROTOCOL)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Students per row, with seeds 0, 1, 2, ...", rich_help_panel=_PROTOCOL)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Published: 1000; scales both modes alike.", rich_help_panel=_PROTOCOL)
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="default, published, condensation (the student of DSA and DM), condensation-all (with every "
            "augmentation at once), holdout (the best of nine on real images held out of the training split), or the "
            "recipe.json of such a choice.",
            rich_help_panel=_PROTOCOL,
        ),
    ] = "default",
    no_controls: Annotated[
        bool, typer.Option("--no-controls", help="Leave out the students of real images.", rich_help_panel=_PROTOCOL)
    ] = False,
    soft: Annotated[
        bool,
        typer.Option(
            "--soft", help="Add rows with the soft labels of the bundle's teacher.", rich_help_panel=_PROTOCOL
        ),
    ] = False,
    whole_epochs: Annotated[
        int, typer.Option(help="Add a row: so many epochs over the whole training split.", rich_help_panel=_PROTOCOL)
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or gpu, for the students.", rich_help_panel=_MACHINE)] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(help="Students trained side by side; as many as pay if left out.", rich_help_panel=_MACHINE),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads in all.", rich_help_panel=_MACHINE)] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(help="Start no student after this time, as 9m or 1h30m.", rich_help_panel=_MACHINE),
    ] = None,
    no_graphs: Annotated[
        bool, typer.Option("--no-graphs", help="On a GPU, no CUDA graphs for the students.", rich_help_panel=_MACHINE)
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="What draws the images: auto, a name that dim doctor lists, or torch, on the students' device.",
            rich_help_panel=ENGINE_PANEL,
            autocompletion=one_of("auto", *ENGINES, "torch"),
        ),
    ] = "auto",
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what classifiers learn from generated images.

    Fresh classifiers are trained on what the bundle draws and, as controls, on real images, and tested once on the real
    test split. Each student is a file in --out, so the same command goes on where an earlier one ended.

    Example:  [bold]dim eval --bundle runs/digits/digits.dim --data digits --ipc 10 --epochs 100[/bold]
    """
    from dim.cli.bars import Bars

    with training_libraries():
        from dim.data.load import load_data
        from dim.evaluation.evaluate import EVAL_PRESETS, TimeOverError, other_origin
        from dim.evaluation.evaluate import evaluate as run_evaluation
        from dim.evaluation.recipes import choose_recipe, read_recipe
        from dim.evaluation.table import accuracy_table, aggregate, cost_table, write_results
        from dim.export.card import record_accuracy
    from dim.runtime.bundle_format.files import load_manifest

    if preset not in EVAL_PRESETS:
        raise BadValueError(f"There is no preset {preset!r}; there are {', '.join(EVAL_PRESETS)}.")
    asked = {
        "ipcs": None if ipcs is None else parse_numbers("--ipc", ipcs),
        "archs": None if archs is None else parse_words(archs),
        "width": width,
        "seeds": None if seeds is None else tuple(range(seeds)),
        "epochs": epochs,
    }
    protocol = EVAL_PRESETS[preset] | {name: value for name, value in asked.items() if value is not None}
    path = choose_bundle(bundle, sha256)
    manifest = load_manifest(path)
    out = out or Path("eval") / manifest.name
    limit_s = None if time_limit is None else parse_duration(time_limit)
    with Bars() as bars:
        images = load_data(
            data or manifest.source.name,
            data_dir=data_dir,
            size=manifest.height,
            channels=manifest.channels,
            seed=split_seed(manifest),
            skip_unreadable=skip_unreadable,
            say=say,
            progress=lambda what, done, total: bars.show(what, done, total or None),
        )
        bars.clear()
        if record and (warning := other_origin(path, manifest, images)):
            raise BadValueError(f"{warning} Such accuracy is not recorded: leave out --record.")
        common: dict[str, Any] = {
            "modes": parse_words(modes),
            "resume": not fresh,
            "device": device,
            "threads": threads,
            "jobs": jobs,
            "graphs": not no_graphs,
            "say": say,
            "progress": lambda report: _show(bars, report),
        }
        students: str | Recipe = read_recipe(Path(recipe)) if recipe.endswith(".json") else recipe
        began, finished = time.monotonic(), True
        try:
            if recipe == "holdout":
                once = {name: value for name, value in protocol.items() if name != "ipcs"}
                students = choose_recipe(
                    images, out=out / "recipe", ipc=protocol["ipcs"][0], time_limit_s=limit_s, **once, **common
                )
            results = run_evaluation(
                path,
                images,
                out=out,
                recipe=students,
                controls=not no_controls,
                compare=parse_bundles(compare or []),
                soft=soft,
                whole_epochs=whole_epochs,
                engine=engine,
                engine_precision=precision,
                time_limit_s=None if limit_s is None else max(0.0, limit_s - (time.monotonic() - began)),
                **protocol,
                **common,
            )
        except TimeOverError as over:
            say(str(over))
            # Students of the recipes' comparison are no results, and the file of an earlier call is not this one's.
            results, finished = [result for result in over.results if result.cell.data == images.name], False
            write_results(results, images, out, finished=False)
    rows = aggregate(results)
    if record and finished:
        record_accuracy(path, [row for row in rows if row["content_id"] in ("", manifest.content_id)])
        say(f"Recorded in {path}.")
    if as_json:
        print_json({"out": out, "finished": finished, "rows": rows})
        return
    if not rows:
        return
    print_rich(accuracy_table(rows))
    print_rich(cost_table(rows))
    print(f"Results: {out}/results.json, chart: {out}/accuracy.png, students trained for {_time_of(rows)} in all.")


def _show(bars: Any, report: Any) -> None:
    """Show one `dim.evaluation.jobs.EvalProgress`."""
    cell = report.cell
    done = report.done_cells + (report.step / report.steps if report.steps and report.step < report.steps else 0)
    bars.show("students", done, report.num_cells, f"{report.done_cells}/{report.num_cells}")
    size = f" {cell.ipc} per class," if cell.ipc else ""
    where = f"step {report.step:,} of {report.steps:,}"
    bars.note(f"{cell.arch}, {cell.subject}, {cell.mode},{size} {cell.labels} labels, seed {cell.seed}: {where}")


def split_seed(manifest: "Manifest") -> int:
    """Return what the test split of a source without one was cut with; another seed would leak training images."""
    origin = manifest.distill_config.get("data")
    recorded = origin.get("split_seed") if isinstance(origin, Mapping) else None
    return int(manifest.distill_config.get("seed", 0) if recorded is None else recorded)


def _time_of(rows: list[dict[str, Any]]) -> str:
    return in_time(sum(row["seconds_per_student"] * len(row["seeds"]) for row in rows))


def parse_bundles(entries: list[str]) -> Mapping[str, Path]:
    """Read `NAME=BUNDLE` entries.

    Raises:
        BadValueError: another form, or one name twice.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise BadValueError(f"--compare got {entry!r}; it takes NAME=BUNDLE, as in first=runs/first/mnist.dim.")
        if name in found:
            raise BadValueError(f"--compare names {name!r} twice; give each bundle a name of its own.")
        found[name] = Path(path)
    return found
