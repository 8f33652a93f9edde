"""The command bench."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from polypstream.cli.options import (
    Commands,
    ConfigFile,
    JsonFile,
    ModelFile,
    Overrides,
    importing,
    open_segmenter,
    read_settings,
    write_json,
)

if TYPE_CHECKING:
    from polypstream.jobs.live import Live
    from polypstream.sinks.browser import Browser

BENCH_VIDEO = "demo:?seconds=10&size=1920x1080&rate=30"

app = Commands()
log = logging.getLogger(__name__)


@app.command("bench")
def bench_machine(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A recording, or a demo source")] = BENCH_VIDEO,
    seconds: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest time per measurement")] = 20.0,
    sources: Annotated[
        int,
        typer.Option(
            "--rooms", min=1, metavar="N", help="Also measure how many live sources at the same time keep up, at most N"
        ),
    ] = 1,
    json_file: JsonFile = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Measure the speed of this machine."""
    with importing():
        from rich.console import Console

        from polypstream.cli.bench_tables import print_bench
        from polypstream.cli.progress import ProgressBar
        from polypstream.jobs.bench import bench
        from polypstream.sources.open import open_source
        from polypstream.web.live import LivePage
        from polypstream.web.server import web
    settings = read_settings(config, set_, model)
    log.info("loading the model and the video; a demo is rendered once, which takes up to two minutes")
    segmenter = open_segmenter(settings)
    with ProgressBar(video, "frames") as progress:
        open_source(video, progress.show).close()  # renders a demo now, so that this is not measured

    def serve_page(live: Live, browser: Browser) -> AbstractContextManager[str]:
        return web([LivePage(live, browser)], "127.0.0.1", 0, None)

    found = bench(partial(open_source, video), segmenter, settings, seconds, serve_page, sources)
    print_bench(found, Console())
    if json_file is not None:
        write_json(json_file, found | {"live": [shown.as_json() for shown in found["live"]]})
