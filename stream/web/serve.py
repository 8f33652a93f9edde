"""`polypstream serve`: pictures, recordings and live sources in the browser."""

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
from polypstream.web.batcher import Batcher
from polypstream.web.library import open_library
from polypstream.web.live import LivePage
from polypstream.web.page import Page
from polypstream.web.pictures import PicturePage
from polypstream.web.queue import RecordingQueue
from polypstream.web.recordings import RecordingsPage
from polypstream.web.server import web

# Batches of pictures in the session at the same time: one fills the gaps that another leaves on some cores.
PICTURES_AT_ONCE = 2


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
    """Serve the whole application beside a block.

    Args:
        folder: where uploads and their results are kept.
        sources: live ones, `[NAME=]SOURCE` each. What ends or fails there ends nothing else.
        segmenter: shared by pictures and live sources; recordings are processed elsewhere, with one of their own.
        settings: of everything.
        host, port, token: see `web`.

    Yields:
        The address.

    Raises:
        SettingsError: it cannot be listened there, or a source is wrong.
        OutputError: the folder cannot be used.
    """
    # Each picture is worked on in a thread of its own already; OpenCV's would only wait for one another.
    cv2.setNumThreads(1)
    browser, batcher = Browser(), Batcher(segmenter)
    opened = open_sources(sources, settings)
    live = LivePage(Live(opened, segmenter, settings, [("web", browser)]) if opened else None, browser)
    with ExitStack() as stack:
        library = stack.enter_context(open_library(folder))
        queue = RecordingQueue(library, settings)
        pages: list[Page] = [
            PicturePage(segmenter, batcher, settings),
            RecordingsPage(library, queue, settings),
            live,
        ]
        for number in range(PICTURES_AT_ONCE):
            stack.enter_context(in_background(f"pictures-{number}", batcher.run, lambda: None))
        stack.callback(batcher.close)
        address = stack.enter_context(web(pages, host, port, token))
        stack.enter_context(in_background("recordings", queue.run, queue.close))
        stack.enter_context(in_background("live", live.run, live.close))
        yield address
