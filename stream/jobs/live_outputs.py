"""The outputs of live sources that a user asks for: recordings, clips and streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polypstream.core.addresses import NAME, redacted, split_name
from polypstream.core.config import Settings
from polypstream.core.formatting import quoted
from polypstream.core.frame import Frame
from polypstream.core.pipeline import Sink
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError, SettingsError
from polypstream.sinks.clips import ClipSaver
from polypstream.sinks.push import Push
from polypstream.sinks.recorded_file import results_folder
from polypstream.sinks.rolling import RollingRecording


def recordings_of(
    path: Path, sources: Sequence[LiveSource], settings: Settings, clean: bool = False, masks: bool = False
) -> list[tuple[str, RollingRecording]]:
    """Make a recording sink for each source.

    Args:
        path: file to record to. If there are several sources, each gets a file with its name appended.
        sources: the sources.
        settings: settings of the run.
        clean: record the pictures without markers.
        masks: write masks.mkv beside each recording, too.

    Returns:
        Name and sink for each source.

    Raises:
        OutputError: a file or its folder of results exists already, the folder in which it lies does not, or its name
            does not end in .mp4.
        SettingsError: there are several sources, and the name of one cannot be part of a file name. Or the settings
            ask for no video.
    """
    option = "--record-clean" if clean else "--record"
    _check_codec(option, settings)
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"{option} {path}: write a name that ends in .mp4, such as {path.with_suffix('.mp4')}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{option} {path}: the folder {path.parent} does not exist")
    nameless = [source.name for source in sources if not NAME.fullmatch(source.name)]
    if nameless and len(sources) > 1:
        raise SettingsError(f"{option}: {nameless[0]} needs a name for its file; write NAME=ADDRESS")
    sinks = []
    for source in sources:
        own = path if len(sources) == 1 else path.with_stem(f"{path.stem}-{source.name}")
        sink = RollingRecording(own, source, settings.output, option, clean, masks)
        sinks.append((recording_name(source, clean), sink))
    return sinks


def _check_codec(option: str, settings: Settings) -> None:
    """Check that the settings name an encoder.

    Raises:
        SettingsError: they ask for no video.
    """
    if settings.output.video.codec == "none":
        raise SettingsError(f"{option}: output.video.codec is none, which writes no video; set it to libx264 or auto")


def clips_of(folder: Path, sources: Sequence[LiveSource], settings: Settings) -> list[tuple[str, ClipSaver]]:
    """Make a sink for each source that keeps its last seconds.

    Args:
        folder: folder for the clips.
        sources: the sources.
        settings: settings of the run.

    Returns:
        Name and sink for each source.

    Raises:
        SettingsError: the settings ask for no video.
    """
    _check_codec("--clips", settings)
    return [
        (f"clips {source.name}", ClipSaver(folder, source, settings.live, settings.output.video)) for source in sources
    ]


def pushes_of(texts: Sequence[str], sources: Sequence[LiveSource], settings: Settings) -> list[tuple[str, Push]]:
    """Make a sink for each address that a source is sent to.

    Args:
        texts: `NAME=URL` of each, with the name of a source; `URL` is enough if there is one source.
        sources: the sources.
        settings: settings of the run.

    Returns:
        Name and sink for each address.

    Raises:
        SettingsError: there is no such source, the scheme is not supported, or the settings ask for no video.
    """
    if texts:
        _check_codec("--push", settings)
    sinks: list[tuple[str, Push]] = []
    for text in texts:
        name, url = split_name(text)
        if url == text and len(sources) == 1:
            name = sources[0].name
        named = [source for source in sources if source.name == name]
        if not named:
            raise SettingsError(f"--push {redacted(url)}: write NAME=URL with the name of a source")
        sink = Push(url, named[0], settings.output.video, settings.live.longest_wait)
        sinks.append((f"push to {redacted(url)}", sink))
    return sinks


def aims_of(sinks: Sequence[Sink[Frame]]) -> list[str]:
    """Say where recordings and streams among some sinks go, one line each."""
    return [f"{sink.source}: {sink.aim}" for sink in sinks if isinstance(sink, RollingRecording | Push)]


def written_by(sinks: Sequence[Sink[Frame]]) -> list[str]:
    """Say what recordings and streams among some sinks have written and sent, one line each."""
    return [
        f"{sink.source}: {f'{sink.written}{_reports_of(sink)}' if isinstance(sink, RollingRecording) else sink.doing}"
        for sink in sinks
        if isinstance(sink, RollingRecording | Push)
    ]


def _reports_of(recording: RollingRecording) -> str:
    """Say which reports of a recording can be opened."""
    reports = (results_folder(file) / "report.html" for file in recording.files)
    there = [quoted(report) for report in reports if report.is_file()]
    return f"; open {', '.join(there)}" if there else ""


def recording_name(source: LiveSource, clean: bool) -> str:
    """Name of the sink that records a source."""
    return f"record{'-clean' if clean else ''} {source.name}"
