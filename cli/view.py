"""`dim view`: a bundle in the browser."""

from typing import Annotated, Any

import typer

from dim.cli.data_options import DATA_HELP, DataDirOption, takes_data_options
from dim.cli.options import (
    BundleArgument,
    DeviceOption,
    EngineOption,
    PrecisionOption,
    Sha256Option,
    ThreadsOption,
    TrustOption,
    choose_bundle,
)
from dim.cli.terminal import require_training_extra, say


@takes_data_options
def view(
    bundle: BundleArgument = None,
    sha256: Sha256Option = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Show the source's real images beside the generated ones, and the nearest. " + DATA_HELP),
    ] = None,
    data_dir: DataDirOption = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; any that is free if left out.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, open no browser.")] = False,
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    *,
    reading: dict[str, Any],
) -> None:
    """Show a bundle in the browser.

    Images by class, seed and index, what lies between two of them, real images beside them, and a button that saves
    what is seen as a set. The page is served on this machine alone; Ctrl-C ends it.

    Example:  [bold]dim view mnist[/bold]
    """
    from dim.gallery import view as show
    from dim.runtime.bundle import open_bundle

    path = choose_bundle(bundle, sha256)
    opened = open_bundle(
        path, engine=engine, device=device, precision=precision, threads=threads, trust=trust or (), say=say
    )
    images = None
    if data:
        with require_training_extra():
            from dim.evaluation.subjects import load_source_data

            images = load_source_data(opened.manifest, data, asked=reading, data_dir=data_dir, say=say, progress=True)
    with show(opened, images, port=port, browser=not no_browser, say=say) as gallery:
        say("Ctrl-C ends it.")
        gallery.wait()
