"""The WebSocket that sends the video of a source to a viewer of the live page.

A binary message is a picture. The text message before it is JSON. Before a key frame it has what the decoder must know.
Before a picture with markers it has these, since the picture is without them. There is none if it would be empty. The
viewer answers each picture that it has shown with a message, whatever it says.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from polypstream.media.page_video import StreamedPicture
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
                if described := _described(picture):
                    await socket.send_text(json.dumps(described))
                await socket.send_bytes(picture.data)
            await socket.close()
        except WebSocketDisconnect:
            pass
        finally:
            answers.cancel()


def _described(picture: StreamedPicture) -> dict[str, Any]:
    """Describe the sequence of a key frame with the names of WebCodecs' VideoDecoderConfig, and the markers."""
    described: dict[str, Any] = {}
    if (sequence := picture.key_frame_of) is not None:
        described |= {"codec": sequence.codec, "codedWidth": sequence.width, "codedHeight": sequence.height}
    if picture.markers is not None:  # dataclasses.asdict would copy each point, for each viewer
        described["markers"] = {field.name: getattr(picture.markers, field.name) for field in fields(picture.markers)}
    return described


async def _read_answers(socket: WebSocket, viewer: Viewer) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        viewer.shown()
    viewer.end()
