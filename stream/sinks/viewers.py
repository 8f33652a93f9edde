"""Viewers of live video on the page. A source is encoded once for all of them, and only while there is one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from av.error import FFmpegError

from polypstream.core.formatting import words_of
from polypstream.core.frame import Frame
from polypstream.media.page_video import PageEncoder, StreamedPicture

# A viewer that has not shown a picture after this time skips to the next key frame.
LATE_S = 1.0
log = logging.getLogger(__name__)


class Viewer:
    """One viewer of the video of a source, in the event loop in which it is made. Pictures wait here to be sent.

    It starts with a key frame. If it is late, what waits is dropped, and it goes on with the next key frame.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[StreamedPicture] = deque()
        self._changed = asyncio.Event()
        # When each picture was sent that it has not shown yet, in seconds of time.monotonic.
        self._unshown: deque[float] = deque()
        self._skips, self._ended = True, False

    def offer(self, picture: StreamedPicture) -> None:
        """Give it the next picture. It does not wait. Any thread may call this.

        Args:
            picture: the picture.
        """
        self._loop.call_soon_threadsafe(self._take, picture)

    def _take(self, picture: StreamedPicture) -> None:
        if self._unshown and time.monotonic() - self._unshown[0] > LATE_S:
            self._waiting.clear()
            self._skips = True
        elif picture.key_frame_of is not None:
            self._skips = False
        if not self._skips:
            self._waiting.append(picture)
            self._changed.set()

    def end(self) -> None:
        """Tell it that no more pictures will come. Any thread may call this."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ended = True
        self._changed.set()

    def shown(self) -> None:
        """Note that the viewer has shown the oldest picture that was sent to it."""
        if self._unshown:
            self._unshown.popleft()

    async def next(self) -> StreamedPicture | None:
        """Wait for the next picture to send.

        Returns:
            The picture; None if no more will come.
        """
        while not self._waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._ended:
            return None
        self._unshown.append(time.monotonic())
        return self._waiting.popleft()


class Viewers:
    """The viewers of a source. Its frames are encoded for them.

    Args:
        width: the maximum width of the video in pixels.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        # A viewer leaves in the event loop, which must not wait for the encoder.
        self._lock, self._encoding = threading.Lock(), threading.Lock()
        self._viewers: set[Viewer] = set()
        self._encoder: PageEncoder | None = None
        self._ended = False

    def __len__(self) -> int:
        return len(self._viewers)

    def write(self, frame: Frame) -> None:
        """Encode a frame, if there is a viewer.

        Args:
            frame: the frame.
        """
        with self._encoding:
            self._send(frame, key_frame=False)

    def join(self, viewer: Viewer, newest: Callable[[], Frame]) -> None:
        """Add a viewer, and send the newest frame to all of them as a key frame.

        Args:
            viewer: the new viewer.
            newest: returns the newest frame.
        """
        with self._encoding:
            with self._lock:
                self._viewers.add(viewer)
                ended = self._ended
            if ended:
                viewer.end()
            else:
                self._send(newest(), key_frame=True)

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer.

        Args:
            viewer: the viewer.
        """
        with self._lock:
            self._viewers.discard(viewer)

    def end(self) -> None:
        """End the video of all viewers."""
        with self._lock:
            self._ended, viewers = True, list(self._viewers)
        for viewer in viewers:
            viewer.end()

    def _send(self, frame: Frame, key_frame: bool) -> None:
        with self._lock:
            viewers = [] if self._ended else list(self._viewers)
        if not viewers:
            self._encoder = None
            return
        self._encoder = self._encoder or PageEncoder(self._width)
        try:
            pictures = self._encoder(frame, time.monotonic(), key_frame)
        except FFmpegError as error:  # the page shows JPEGs then
            log.error(f"{frame.source}: the video of the page ended: {words_of(error)}")
            self.end()
            return
        for picture in pictures:
            for viewer in viewers:
                viewer.offer(picture)
