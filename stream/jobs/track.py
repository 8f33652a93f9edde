"""Analysis of a recording, frame by frame, for a Python program. No files are written."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import suppress

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.pipeline import Channel, Closed, Pipeline, in_background
from polypstream.core.protocols import Source
from polypstream.core.time_range import TimeRange
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.predictions import FrameResult, RgbConverter
from polypstream.jobs.setup import Stages, choose_field_of_view, make_stages, restricted
from polypstream.sources.open import open_source

log = logging.getLogger(__name__)
# Number of finished frames that wait for the caller.
QUEUE = 4


class FrameResults(Iterator[FrameResult]):
    """Iterator over the results of a recording's frames in order. Threads compute the next frames meanwhile.

    To end before the last frame, leave a `with` block or call `close`.

    Args:
        recording: path of a recording, or a demo's address.
        segmenter: runs the model.
        settings: settings, as for `process`.
        times: range of the recording; None: all of it.

    Attributes:
        name: name of the recording.
        width, height: size of the frames in pixels.
        frame_rate: nominal frames per second.
        expected_frames: announced number of frames; None: unknown.
        damage: damage found in the recording so far, one phrase each; also logged at the end.
        notes: other information for the user, one phrase each; also logged at the end.

    Raises:
        SourceError: the recording cannot be opened, or (during the iteration) cannot be read.
        SettingsError: the field of view in the settings lies outside the frame.
    """

    def __init__(
        self, recording: str, segmenter: Segmenter, settings: Settings, times: TimeRange | None = None
    ) -> None:
        source = open_source(recording)
        try:
            view = choose_field_of_view(source, settings)
            self._source = restricted(source, view, settings, times=times)
        except BaseException:
            source.close()
            raise
        self._results = _compute(self._source, make_stages(view, segmenter, settings))
        self.name, self.expected_frames = self._source.name, self._source.expected_frames
        pictures = self._source.format
        self.width, self.height, self.frame_rate = pictures.width, pictures.height, float(pictures.rate)
        self.damage, self.notes = self._source.damage, self._source.notes

    def __next__(self) -> FrameResult:
        try:
            return next(self._results)
        except BaseException:  # the recording has ended, or something failed
            self.close()
            raise

    def close(self) -> None:
        """End the threads and close the recording. May be called more than once."""
        self._results.close()
        self._source.close()

    def __enter__(self) -> FrameResults:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ChannelSink:
    """A sink that passes frames to the caller."""

    def __init__(self, channel: Channel[Frame]) -> None:
        self._channel = channel

    def write(self, frame: Frame) -> None:
        self._channel.put(frame)

    def close(self) -> None:
        self._channel.end()


def _compute(source: Source, stages: Stages) -> Generator[FrameResult, None, None]:
    """Run the pipeline in the background and yield its results."""
    channel, to_rgb = Channel[Frame](QUEUE), RgbConverter()
    pipeline = Pipeline([("decode", source.frames())], stages.analysis, [("caller", _ChannelSink(channel))])

    def run() -> None:
        with suppress(Closed):  # the caller has stopped the iteration
            pipeline.run()

    with in_background("track", run, channel.abandon):
        for frame in channel:
            yield FrameResult(frame, to_rgb)
    for problem in source.damage:
        log.warning("%s: damaged: %s", source.name, problem)
    for note in source.notes:
        log.info("%s: %s", source.name, note)
