"""Writes bodies of requests to disk while they are received. Memory holds one chunk at a time."""

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
from polypstream.web.invalid import NO_FILE

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

DEFAULT_NAME = "recording"
# The free space of the disk is checked each time that this many bytes have been received.
CHECK_BYTES = 16 * 2**20


async def chunks_of(request: Request, check_space: Callable[[], None]) -> AsyncIterator[bytes]:
    """Yield the chunks of a request's body, and call `check_space` at intervals of CHECK_BYTES."""
    unchecked = CHECK_BYTES
    async for chunk in request.stream():
        unchecked += len(chunk)
        if unchecked >= CHECK_BYTES:
            check_space()
            unchecked = 0
        yield chunk


async def append_body(request: Request, path: Path, most: int, check_space: Callable[[], None]) -> None:
    """Append the body of a request to a file. If the connection breaks, the received part is kept.

    Args:
        request: the request.
        path: of the file.
        most: number of bytes that the body may have.
        check_space: raises an exception if the disk has too little free space.

    Raises:
        HTTPException: the body has more bytes, or `check_space` raised it.
        OutputError: the file cannot be written, for instance since the disk is full.
    """

    def append(chunk: bytes) -> None:
        file.write(chunk)
        file.flush()

    with writing(path), path.open("ab") as file, suppress(ClientDisconnect):
        async for chunk in chunks_of(request, check_space):
            if len(chunk) > most:
                raise HTTPException(413, "more bytes than the announced size of the recording")
            most -= len(chunk)
            await run_in_threadpool(append, chunk)


async def save_file_field(request: Request, path: Path, check_space: Callable[[], None]) -> str:
    """Save the field `file` of a multipart body (RFC 7578) to a file, which is closed in any case.

    Args:
        request: the request.
        path: of the file.
        check_space: raises an exception if the disk has too little free space.

    Returns:
        The original name of the file.

    Raises:
        HTTPException: there is no such field, the file is empty, the body is not multipart, or `check_space` raised it.
        OutputError: the file cannot be written, for instance since the disk is full.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise HTTPException(415, NO_FILE)
    try:
        with writing(path), path.open("wb") as file:
            field = _FileField(file)
            parser = MultipartParser(options[b"boundary"], field.callbacks())
            async for chunk in chunks_of(request, check_space):
                await run_in_threadpool(parser.write, chunk)
            parser.finalize()
    except ClientDisconnect:
        raise HTTPException(400, "the connection broke") from None
    except FormParserError as error:
        raise HTTPException(400, f"the body is not a multipart form ({error})") from error
    if not field.complete:
        raise HTTPException(422, NO_FILE)
    if not path.stat().st_size:
        raise HTTPException(415, "the file is empty")
    return field.name or DEFAULT_NAME


class _FileField:
    """Writes the first field `file` of a form to a file, and ignores all other fields.

    Args:
        target: the file.

    Attributes:
        name: original name of the file.
        complete: the end of the field has been received.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._header, self._value, self._disposition = b"", b"", b""
        self._wanted = self.complete = False
        self.name = ""

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks for the parser."""
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
        self._wanted = not self.complete and options.get(b"name") == b"file" and b"filename" in options
        if self._wanted:
            self.name = options[b"filename"].decode(errors="replace")

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._target.write(data[start:end])

    def _end(self) -> None:
        self.complete = self.complete or self._wanted
