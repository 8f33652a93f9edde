"""`polypstream serve`: images, recordings and live sources in the browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2

from polypstream.core.config import Settings
from polypstream.core.pipeline import in_background
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.sinks.browser import Browser
from polypstream.web.annotations import AnnotationMaker
from polypstream.web.batcher import Batcher
from polypstream.web.frames import FrameChild
from polypstream.web.library import open_library
from polypstream.web.live import LivePage
from polypstream.web.page import Page
from polypstream.web.pictures import PicturePage
from polypstream.web.queue import RecordingQueue
from polypstream.web.recordings import RecordingsPage
from polypstream.web.server import web

# Batches of images that run in the session at the same time. A second one uses cores that the first one leaves idle.
CONCURRENT_BATCHES = 2


@contextmanager
def serve(
    folder: Path,
    sources: Sequence[str],
    segmenter: Segmenter,
    settings: Settings,
    host: str,
    port: int,
    token: str | None,
) -> Iterator[str]:
    """Serve the whole application for the duration of a with block.

    Args:
        folder: of uploads and their results.
        sources: live sources, `[NAME=]SOURCE` each. A source that ends or fails does not affect the other pages.
        segmenter: the model for images and live sources. The process for recordings loads its own model.
        settings: of the application and of all runs.
        host, port, token: see `web`.

    Yields:
        The address.

    Raises:
        SettingsError: the server cannot listen on host and port, or a source is not valid.
        OutputError: the folder cannot be used.
    """
    # Each image is processed in its own thread already. Threads of OpenCV would only compete with each other.
    cv2.setNumThreads(1)
    browser, batcher = Browser(), Batcher(segmenter)
    opened = open_sources(sources, settings)
    live = LivePage(Live(opened, segmenter, settings, [("web", browser)]) if opened else None, browser)
    with ExitStack() as stack:
        library = stack.enter_context(open_library(folder))
        queue, annotations = RecordingQueue(library, settings), AnnotationMaker(library)
        stack.callback(annotations.close)
        frames, carrier = FrameChild(), FrameChild()
        stack.callback(frames.close)
        stack.callback(carrier.close)
        pages: list[Page] = [
            PicturePage(segmenter, batcher, settings),
            RecordingsPage(library, queue, annotations, frames, carrier, settings),
            live,
        ]
        for number in range(CONCURRENT_BATCHES):
            stack.enter_context(in_background(f"pictures-{number}", batcher.run, lambda: None))
        stack.callback(batcher.close)
        address = stack.enter_context(web(pages, host, port, token))
        stack.enter_context(in_background("recordings", queue.run, queue.close))
        stack.enter_context(in_background("live", live.run, live.close))
        yield address
