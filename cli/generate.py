"""`dim generate`: a bundle becomes a training set."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dim.cli.options import (
    BundleOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    PrecisionOption,
    Sha256Option,
    ThreadsOption,
    TrustOption,
    choose_bundle,
    complete_from,
    output_option,
)
from dim.cli.parsing import parse_bytes, parse_classes, parse_per_class, parse_shard
from dim.cli.terminal import print_json, print_line, say
from dim.runtime.errors import BadValueError
from dim.runtime.units import format_count, format_duration, format_units

if TYPE_CHECKING:
    from dim.runtime.sets.dry_run import SetEstimate
    from dim.runtime.sets.generate import GenerateSummary

_size_option = partial(typer.Option, rich_help_panel="Size (one of the first four)")
_scale_option = partial(typer.Option, rich_help_panel="Scale out")


def generate(
    out: Annotated[
        str,
        typer.Option(help="Where the set goes: a folder, s3://bucket/set, gs://bucket/set or hf://datasets/USER/SET."),
    ],
    ipc: Annotated[int | None, _size_option(help="Images per class.")] = None,
    ratio: Annotated[
        float | None,
        _size_option(
            help="Size relative to the source set, keeping its balance of classes: 0.02, or 2 for twice as many."
        ),
    ] = None,
    total: Annotated[int | None, _size_option(help="Images in all, keeping the source's balance.")] = None,
    per_class: Annotated[
        str | None, _size_option(help='Images by class: cat=100,dog=20; with a comma in a name: "cat, black"=5.')
    ] = None,
    classes: Annotated[
        str | None, _size_option(help="Only these classes: cat,dog; a name with a comma in double quotes.")
    ] = None,
    one_class: Annotated[
        list[str] | None, _size_option("--class", help="Only this class, as it is written; may be repeated.")
    ] = None,
    start: Annotated[
        int,
        _size_option(
            help="First index of every class. To continue a set, give its largest class count; its smaller classes "
            "then skip some indices."
        ),
    ] = 0,
    seed: Annotated[
        int,
        typer.Option(
            help="0 to 2**64 - 1; another seed draws other images. The first images of a class are the same whatever "
            "the seed where their latents were optimised; see --no-fixed-latents."
        ),
    ] = 0,
    bundle: BundleOption = None,
    sha256: Sha256Option = None,
    no_fixed_latents: Annotated[
        bool,
        typer.Option(
            "--no-fixed-latents",
            help="Leave out the latents that the bundle optimised for small sets: the seed draws every image.",
        ),
    ] = False,
    format: Annotated[
        str,
        output_option(
            help="imagefolder, npz, npy, parquet or webdataset.",
            autocompletion=complete_from("imagefolder", "npz", "npy", "parquet", "webdataset"),
        ),
    ] = "imagefolder",
    shard_images: Annotated[int | None, output_option(help="Images per file of a sharded format.")] = None,
    shard_size: Annotated[str | None, output_option(help="Largest file instead: 64MB, 1GiB.")] = None,
    overwrite: Annotated[bool, output_option("--overwrite", help="Replace another set in --out.")] = False,
    check: Annotated[
        bool, output_option("--check", help="Hash every finished file again; else only the newest parts.")
    ] = False,
    soft_labels: Annotated[
        bool, output_option("--soft-labels", help="Write the logits of the bundle's teacher too.")
    ] = False,
    dry_run: Annotated[bool, output_option("--dry-run", help="Print the plan: images, bytes, time.")] = False,
    as_json: JsonOption = False,
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    encoders: Annotated[
        int | None,
        _scale_option(
            help="Processes that encode PNG files, 1 to 64, of 15 MiB of memory each; by default 2, or 1 on fewer than "
            "three cores. More help a GPU."
        ),
    ] = None,
    shard: Annotated[str, _scale_option(metavar="I/N", help="Make only part I of N, counted from 0.")] = "0/1",
    ray: Annotated[bool, _scale_option("--ray", help="Draw on Ray, here or on the cluster of $RAY_ADDRESS.")] = False,
    num_workers: Annotated[
        int | None, _scale_option(help="Workers of --ray; else one per GPU or per two cores.")
    ] = None,
) -> None:
    """Write a training set of any size from a bundle.

    The same arguments complete a set that was interrupted, to the same bytes.

    Example:  [bold]dim generate --ipc 50 --out data/[/bold]
    """
    from dim.runtime.bundle import open_bundle
    from dim.runtime.sets.dry_run import estimate_set
    from dim.runtime.sets.finished import describe_kept
    from dim.runtime.sets.generate import generate as write_set
    from dim.runtime.sets.ray import check_workers, generate_on_ray
    from dim.runtime.sets.request import SetRequest

    if not out.strip():
        raise BadValueError("--out is empty; name the folder of the set.")
    if ray and shard != "0/1":
        raise BadValueError("--ray shares the set among its workers by itself: leave out --shard.")
    if num_workers is not None and not ray:
        raise BadValueError("--num-workers is for --ray; without it, --shard I/N makes a part of a set.")
    if encoders is not None and ray:
        raise BadValueError("--encoders is for one machine; with --ray every worker chooses for itself.")
    if ray:
        check_workers(num_workers)
    named = [*(one_class or ()), *(() if classes is None else parse_classes(classes))]
    request = SetRequest(
        ipc=ipc,
        ratio=ratio,
        total=total,
        per_class=None if per_class is None else parse_per_class(per_class),
        classes=named or None,
        start=start,
        seed=seed,
        format=format,
        shard_images=shard_images,
        shard_bytes=None if shard_size is None else parse_bytes(shard_size),
        soft_labels=soft_labels,
        encoders=encoders,
    )
    part = parse_shard(shard)
    with open_bundle(
        choose_bundle(bundle, sha256),
        engine=engine,
        device=device,
        precision=precision,
        threads=threads,
        trust=trust or (),
        fixed_latents=not no_fixed_latents,
        say=say,
    ) as opened:
        if dry_run:
            estimate = estimate_set(
                opened, request, out, shard=part, overwrite=overwrite, workers=num_workers or 1, say=say
            )
            print_json(asdict(estimate)) if as_json else _print_estimate(estimate, ray)
            return
        try:
            if ray:
                summary = generate_on_ray(
                    opened,
                    request,
                    out,
                    num_workers=num_workers,
                    overwrite=overwrite,
                    check=check,
                    say=say,
                    progress=True,
                )
            else:
                summary = write_set(
                    opened, request, out, shard=part, overwrite=overwrite, check=check, say=say, progress=True
                )
        except KeyboardInterrupt:
            say(describe_kept(out))
            raise
    print_json(asdict(summary)) if as_json else _print_summary(summary, shard)


def _print_estimate(estimate: "SetEstimate", on_ray: bool) -> None:
    print_line(f"{estimate.out}: {format_count(estimate.images, 'image')} as {estimate.format}, nothing written yet.")
    if estimate.replaces:
        print_line("Removes:   another set that is there now")
    print_line(f"To draw:   {format_count(estimate.images_missing, 'image')} by {estimate.engine}")
    free = "" if estimate.free_bytes is None else f"; {format_units(estimate.free_bytes, 'B')} are free"
    print_line(f"To write:  about {format_units(estimate.bytes, 'B')}{free}")
    workers = f", on {estimate.workers} worker{'s' * (estimate.workers > 1)} as fast as this machine" if on_ray else ""
    print_line(f"It takes:  about {format_duration(estimate.seconds)}{workers}")


def _print_summary(summary: "GenerateSummary", shard: str) -> None:
    whole = "complete" if summary.complete else f"shard {shard} done, others missing"
    print_line(f"{summary.out}: {format_count(summary.images, 'image')} as {summary.format}, {whole}.")
    if summary.images_drawn:
        speed = summary.images_drawn / max(summary.seconds, 1e-9)
        drawn = f"{format_count(summary.images_drawn, 'image')}, {format_units(summary.bytes_written, 'B')}"
        print_line(f"Drawn now: {drawn} in {format_duration(summary.seconds)} ({speed:,.0f} images/s).")
