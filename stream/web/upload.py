"""Bodies of requests, written to disk as they come; memory holds one piece at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from polypstream.core.files import writing

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

NAMELESS = "recording"
# How much may come before the disk is looked at again.
LOOK_BYTES = 16 * 2**20


async def pieces_of(request: Request, see_room: Callable[[], None]) -> AsyncIterator[bytes]:
    """A request's body as it comes; now and then it is seen that there is room for more."""
    unseen = LOOK_BYTES
    async for piece in request.stream():
        unseen += len(piece)
        if unseen >= LOOK_BYTES:
            see_room()
            unseen = 0
        yield piece


async def append_body(request: Request, path: Path, most: int, see_room: Callable[[], None]) -> None:
    """Append a request's body to a file; what came is kept if the line breaks.

    Args:
        request: whose body it is.
        path: of the file.
        most: bytes that it may have.
        see_room: raises if the disk has no room.

    Raises:
        HTTPException: it has more, or there is no room.
        OutputError: the disk is full, or alike.
    """

    def append(piece: bytes) -> None:
        file.write(piece)
        file.flush()

    with writing(path), path.open("ab") as file, suppress(ClientDisconnect):
        async for piece in pieces_of(request, see_room):
            if len(piece) > most:
                raise HTTPException(413, "more bytes than the recording was said to have")
            most -= len(piece)
            await run_in_threadpool(append, piece)


async def save_file_field(request: Request, path: Path, see_room: Callable[[], None]) -> str:
    """Save the field `file` of a multipart body (RFC 7578) as a file, which is closed whatever happens.

    Returns:
        Its owner's name of it.

    Raises:
        HTTPException: there is no such field, it is empty, the body is not multipart, or `see_room` says so.
        OutputError: the disk is full, or alike.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise HTTPException(415, "send multipart/form-data with a field `file`")
    try:
        with writing(path), path.open("wb") as file:
            field = _FileField(file)
            parser = MultipartParser(options[b"boundary"], field.callbacks())
            async for piece in pieces_of(request, see_room):
                await run_in_threadpool(parser.write, piece)
            parser.finalize()
    except ClientDisconnect:
        raise HTTPException(400, "the line broke") from None
    except FormParserError as error:
        raise HTTPException(400, f"the body is not a multipart form ({error})") from error
    if not field.whole:
        raise HTTPException(422, "the form has no file in a field `file`")
    if not path.stat().st_size:
        raise HTTPException(415, "the file is empty")
    return field.name or NAMELESS


class _FileField:
    """Writes the first field `file` of a form, and no other, as it comes.

    Args:
        target: to which it is written.

    Attributes:
        name: its owner's name of it.
        whole: its end has come.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._header, self._value, self._disposition = b"", b"", b""
        self._wanted = self.whole = False
        self.name = ""

    def callbacks(self) -> MultipartCallbacks:
        """For a parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._choose,
            "on_part_data": self._write,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition = b""

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _choose(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._wanted = not self.whole and options.get(b"name") == b"file" and b"filename" in options
        if self._wanted:
            self.name = options[b"filename"].decode(errors="replace")

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._target.write(data[start:end])

    def _end(self) -> None:
        self.whole = self.whole or self._wanted
