"""The commands live, serve and devices."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polypstream.cli.options import (
    LIVE_HELP,
    Commands,
    ConfigFile,
    ModelFile,
    Overrides,
    importing,
    open_segmenter,
    read_settings,
)
from polypstream.errors import SettingsError

if TYPE_CHECKING:
    from polypstream.cli.progress import StatusLines
    from polypstream.core.frame import Frame
    from polypstream.core.pipeline import Sink
    from polypstream.jobs.live import Live
    from polypstream.sinks.window import Windows

log = logging.getLogger(__name__)
SERVED = Path("polypstream-served")
NO_OUTPUT = (
    "live: nothing would show, record or send the video. Add --serve 127.0.0.1:8000 (web page), --window, "
    "--record FILE.mp4, --push URL, or --set live.sound=true (a sound for each new polyp)"
)

app = Commands()


@app.command("live")
def live_sources(
    sources: Annotated[list[str], typer.Argument(metavar="[NAME=]SOURCE...", help=LIVE_HELP)],
    window: Annotated[
        bool,
        typer.Option("--window", help="Show it in a window; keys: o overlay, h style, s snapshot, r record, q quit"),
    ] = False,
    record: Annotated[Path | None, typer.Option(metavar="FILE.mp4", help="Record the annotated video")] = None,
    push: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]URL", help="Send the annotated video to rtsp, srt, udp, tcp or rtmp"),
    ] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Show it on a web page at this address")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POLYPSTREAM_TOKEN",
            metavar="TOKEN",
            help="Access token for the web page; generated if omitted",
        ),
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Mark polyps in live video until Ctrl-C."""
    with importing():
        from polypstream.cli.progress import StatusLines
        from polypstream.core.pipeline import POLL_S
        from polypstream.jobs.live import Live, describe, keys_of, open_sources, pushes_of, recordings_of
        from polypstream.sinks.bell import Bell
        from polypstream.sinks.browser import Browser
        from polypstream.sinks.window import REFRESH_RATE, Windows
        from polypstream.web.live import LivePage
        from polypstream.web.server import parse_listen, web
    settings = read_settings(config, set_, model)
    if not (window or record or push or serve is not None or settings.live.sound):
        raise SettingsError(NO_OUTPUT)
    listen = None if serve is None else parse_listen(serve)
    opened = open_sources(sources, settings)
    recordings = recordings_of(record, opened, settings) if record else []
    windows = Windows(settings.live.window) if window else None
    browser = Browser() if serve is not None else None
    shown: list[tuple[str, Sink[Frame]]] = [
        (name, sink)
        for name, sink in (("web", browser), ("window", windows), ("bell", Bell() if settings.live.sound else None))
        if sink
    ]
    segmenter = open_segmenter(settings)
    live = Live(opened, segmenter, settings, [*recordings, *pushes_of(push or [], opened, settings), *shown])
    if windows is not None:
        windows.keys = keys_of(live, [recording for _, recording in recordings], windows)
        windows.recordings = {recording.source: recording for _, recording in recordings}
    with ExitStack() as stack:
        if listen is not None and browser is not None:
            typer.echo(stack.enter_context(web([LivePage(live, browser)], *listen, token)))
        try:
            with StatusLines() as lines:
                live.run(partial(_update, live, windows, lines), POLL_S if windows is None else 1 / REFRESH_RATE)
        finally:
            for status in live.status():
                typer.echo(describe(status))
            for problem in live.failed_sinks():
                log.error(problem)
    if live.failed_sinks():
        raise typer.Exit(1)


def _update(live: Live, windows: Windows | None, lines: StatusLines) -> None:
    """Update windows and status lines. The main thread calls this while other threads process the video."""
    from polypstream.jobs.live import describe

    if windows is not None:
        windows.pump()
    lines.show(lambda: [*(describe(status) for status in live.status()), *live.sink_problems()])


@app.command("serve")
def serve_pages(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; other machines need a token")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0: the system chooses one")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POLYPSTREAM_TOKEN",
            metavar="TOKEN",
            help="Access token for all requests; generated if omitted",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for uploads and their results")] = SERVED,
    live: Annotated[list[str] | None, typer.Option(metavar="[NAME=]SOURCE", help=LIVE_HELP)] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Serve web pages and an HTTP API."""
    with importing():
        from polypstream.web.serve import serve as serve_application
    settings = read_settings(config, set_, model)
    segmenter = open_segmenter(settings)
    with serve_application(folder, live or [], segmenter, settings, host, port, token) as address:
        typer.echo(address)
        threading.Event().wait()


@app.command()
def devices() -> None:
    """List the capture devices of this machine and their formats."""
    with importing():
        from polypstream.sources.devices import list_devices
    found = list_devices()
    if not found:
        typer.echo("no capture device; a card must appear as V4L2 (Linux), DirectShow or AVFoundation device")
    for device in found:
        typer.echo(f"{device.address}  {device.description}")
        for offered in device.formats:
            typer.echo(f"    {offered}")
