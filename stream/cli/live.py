"""The commands live, serve and devices."""

from __future__ import annotations

import logging
import shlex
import signal
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
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
from polypstream.core.memory import keep_heap_small
from polypstream.errors import PolypstreamError, SettingsError

if TYPE_CHECKING:
    from polypstream.cli.progress import StatusLines
    from polypstream.core.frame import Frame
    from polypstream.core.pipeline import Sink
    from polypstream.jobs.live import Live
    from polypstream.jobs.live_rooms import Rooms
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
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]SOURCE...", help=f"One or more of: {LIVE_HELP}")
    ] = None,
    rooms_file: Annotated[
        Path | None,
        typer.Option(
            "--rooms",
            metavar="FILE.yaml",
            help="File with the sources of several rooms, and what is recorded and sent of each",
        ),
    ] = None,
    window: Annotated[
        bool,
        typer.Option(
            "--window",
            help="Show the video in a window. Keys: o markers, h heat map, s snapshot, r recording, c clip, 1 to 5 "
            "marks (caecum reached, withdrawal begins, withdrawal ends, biopsy, note), q quit",
        ),
    ] = False,
    record: Annotated[Path | None, typer.Option(metavar="FILE.mp4", help="Record the annotated video")] = None,
    record_clean: Annotated[
        Path | None, typer.Option(metavar="FILE.mp4", help="Record the video without markers")
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write masks.mkv beside each recording, for `polypstream score`")
    ] = False,
    clips: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the last minute in memory; the key c or a button of the page saves it as a clip in this folder",
        ),
    ] = None,
    push: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URL",
            help="Send the annotated video to an rtsp://, srt://, udp://, tcp:// or rtmp:// address",
        ),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Show the video on a web page at this address, for instance 127.0.0.1:8000"
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POLYPSTREAM_TOKEN",
            metavar="TOKEN",
            help="Token, the password of the web page; if other machines can open the page, one is created by default",
        ),
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Mark polyps in live video until you press Ctrl-C.

    At least one output is needed: --window, --record, --record-clean, --push
    or --serve.
    """
    keep_heap_small()
    with importing():
        from polypstream.cli.progress import StatusLines
        from polypstream.core.pipeline import POLL_S, in_background
        from polypstream.jobs.live import Live, keys_of, open_sources
        from polypstream.jobs.live_outputs import aims_of, clips_of, pushes_of, recordings_of, written_by
        from polypstream.jobs.live_rooms import Rooms
        from polypstream.jobs.live_status import describe
        from polypstream.sinks.bell import Bell
        from polypstream.sinks.browser import Browser
        from polypstream.sinks.window import REFRESH_RATE, Windows
        from polypstream.web.live import LivePage
        from polypstream.web.server import parse_listen, web
    settings = read_settings(config, set_, model)
    if rooms_file and (sources or record or record_clean or push):
        raise SettingsError("--rooms: leave out SOURCE, --record, --record-clean and --push; the file has them")
    if not (rooms_file or sources):
        raise SettingsError("live: name a SOURCE, such as /dev/video0, or give --rooms FILE.yaml")
    hangups = _hangups() if rooms_file else SimpleQueue[bool]()
    rooms = Rooms(rooms_file, settings, masks, clips) if rooms_file else None
    listed = rooms.rooms if rooms else []
    files = [record, record_clean, *(file for room in listed for file in (room.record, room.record_clean))]
    sent = [push, *(room.push for room in listed)]
    if not any((window, *files, *sent, serve is not None, settings.live.sound)):
        raise SettingsError(NO_OUTPUT)
    if masks and not any(files):
        raise SettingsError("--masks: goes with --record or --record-clean; give one of them, too")
    if record and record_clean and record.resolve() == record_clean.resolve():
        raise SettingsError(f"--record-clean {record_clean}: is the file of --record, too; give it another name")
    if clips is not None and not window and serve is None:
        raise SettingsError("--clips: nothing can ask for a clip; add --window or --serve")
    listen = None if serve is None else parse_listen(serve)
    outputs: list[tuple[str, Sink[Frame]]] = []
    if rooms:
        started = rooms.open()
        opened = [room.source for room in started]
        outputs += [sink for room in started for sink in room.sinks]
    else:
        _check_devices(sources or [])
        opened = open_sources(sources or [], settings)
        outputs += recordings_of(record, opened, settings, masks=masks) if record else []
        outputs += recordings_of(record_clean, opened, settings, clean=True, masks=masks) if record_clean else []
        outputs += pushes_of(push or [], opened, settings)
        outputs += clips_of(clips, opened, settings) if clips is not None else []
    windows = Windows(settings.live.window) if window else None
    browser = Browser() if serve is not None else None
    shown: list[tuple[str, Sink[Frame]]] = [
        (name, sink)
        for name, sink in (("web", browser), ("window", windows), ("bell", Bell() if settings.live.sound else None))
        if sink
    ]
    log.info("loading the model")
    segmenter = open_segmenter(settings)
    displays = rooms.displays if rooms else {}
    live = Live(opened, segmenter, settings, [*outputs, *shown], displays, changes=rooms is not None)
    if windows is not None:
        windows.keys = keys_of(live, windows)
        windows.recordings = live.recording_of
    with ExitStack() as stack:
        if listen is not None and browser is not None:
            typer.echo(stack.enter_context(web([LivePage(live, browser, rooms)], *listen, token)))
            log.info(f"{_how_to_open(listen[0])}; Ctrl-C stops the video")
        for line in aims_of(live.outputs()):
            log.info(f"{line}; Ctrl-C ends it")
        if live.clips:
            seconds = f"the last {settings.live.keep_seconds:g} seconds of each source are kept in memory"
            log.info(f"{seconds}; a clip of them is saved in {clips} when you ask for it")
        if rooms:
            reload = partial(_reload_on, hangups, rooms, live)
            stack.enter_context(in_background("reload", reload, lambda: hangups.put(False)))
        try:
            with StatusLines() as lines:
                live.run(partial(_update, live, windows, lines), POLL_S if windows is None else 1 / REFRESH_RATE)
        finally:
            for line in (*map(describe, live.status()), *written_by(live.outputs())):
                typer.echo(line)
            for problem in (*live.failed_sources(), *live.failed_sinks()):
                log.error(problem)
    if live.failed_sources() or live.failed_sinks():
        raise typer.Exit(1)


def _check_devices(sources: list[str]) -> None:
    """Refuse devices that do not exist. Those of --rooms are waited for: that command runs unattended.

    Raises:
        SourceError: there is no such device.
    """
    from polypstream.core.addresses import split_name
    from polypstream.sources.devices import check_device

    for source in sources:
        check_device(split_name(source)[1])


def _hangups() -> SimpleQueue[bool]:
    """Return a queue that gets True at each SIGHUP, which Windows does not have. Without this, it ends the program."""
    received: SimpleQueue[bool] = SimpleQueue()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: received.put(True))
    return received


def _reload_on(hangups: SimpleQueue[bool], rooms: Rooms, live: Live) -> None:
    """Read the file of the rooms again for each True, until there is a False."""
    while hangups.get():
        try:
            rooms.reload(live)
        except PolypstreamError as error:
            log.error(f"{error}; nothing was changed")


def _update(live: Live, windows: Windows | None, lines: StatusLines) -> None:
    """Update windows and status lines. The main thread calls this while other threads process the video."""
    from polypstream.jobs.live_status import describe

    if windows is not None:
        windows.pump()
    lines.show(lambda: [*(describe(status) for status in live.status()), *live.sink_problems()])


@app.command("serve")
def serve_pages(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all machines of the "
            "network, which then need the token",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0: the system chooses one")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POLYPSTREAM_TOKEN",
            metavar="TOKEN",
            help="Token, the password of the server; if other machines can reach it, one is created by default",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for uploads and their results")] = SERVED,
    live: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]SOURCE", help=f"Also show live video: {LIVE_HELP}")
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Find polyps in the browser: web pages and an HTTP API.

    The pages take images and recordings, and show live video. Ctrl-C stops the
    server.
    """
    keep_heap_small()
    with importing():
        from polypstream.cli.progress import passing_line
        from polypstream.web.serve import serve as serve_application
    settings = read_settings(config, set_, model)
    _check_devices(live or [])
    with passing_line("loading the model"):
        segmenter = open_segmenter(settings)
    with serve_application(folder, live or [], segmenter, settings, host, port, token) as address:
        typer.echo(address)
        log.info(f"{_how_to_open(host)}; uploads and results are in {folder}; Ctrl-C stops the server")
        threading.Event().wait()


def _how_to_open(host: str) -> str:
    """Say what to do with the address of a server that listens on this host."""
    if host in ("0.0.0.0", "::"):
        return f"open this address in a browser, on another machine with the name of this machine in place of {host}"
    return "open this address in a browser"


@app.command()
def devices() -> None:
    """List the capture devices of this machine and their formats."""
    with importing():
        from polypstream.sources.devices import NO_DEVICE, list_devices
    found = list_devices()
    if not found:
        typer.echo(NO_DEVICE)
        typer.echo("To try live video without one: polypstream live loop:FILE --serve 127.0.0.1:8000")
        return
    for device in found:
        typer.echo(f"{device.address}  {device.description}")
        for offered in device.formats:
            typer.echo(f"    {offered}")
    typer.echo(f"To see the first one: polypstream live {shlex.quote(found[0].address)} --serve 127.0.0.1:8000")
