"""The WebSocket that sends the video of a source to a viewer of the live page.

Before each key frame, a text message has what the decoder must know, as JSON. A binary message is a picture. The viewer
answers each picture that it has shown with a message, whatever it says.
"""

from __future__ import annotations

import asyncio
import json

from starlette.websockets import WebSocket, WebSocketDisconnect

from polypstream.media.page_video import Sequence
from polypstream.sinks.browser import Browser
from polypstream.sinks.viewers import Viewer


async def send_video(socket: WebSocket, browser: Browser, source: str) -> None:
    """Accept a viewer, and send it the video of a source until either side ends it.

    Args:
        socket: connection to the viewer.
        browser: the sink that has the video.
        source: name of the source.
    """
    await socket.accept()
    async with browser.video(source) as viewer:
        answers = asyncio.create_task(_read_answers(socket, viewer))
        try:
            while (picture := await viewer.next()) is not None:
                if picture.key_frame_of is not None:
                    await socket.send_text(_described(picture.key_frame_of))
                await socket.send_bytes(picture.data)
            await socket.close()
        except WebSocketDisconnect:
            pass
        finally:
            answers.cancel()


def _described(sequence: Sequence) -> str:
    """Describe a sequence with the names of WebCodecs' VideoDecoderConfig."""
    described = {"codec": sequence.codec, "codedWidth": sequence.width, "codedHeight": sequence.height}
    return json.dumps(described)


async def _read_answers(socket: WebSocket, viewer: Viewer) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        viewer.shown()
    viewer.end()
