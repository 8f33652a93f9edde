"""Bodies of requests, written to disk as they come; memory holds one piece at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fastapi import HTTPException, Request
from python_multipart import FormParser
from python_multipart.exceptions import FileError, FormParserError
from python_multipart.multipart import File, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from stream.errors import OutputError
from stream.sinks.files import writing

NAMELESS = "recording"
# Of the fields that are not files, which nobody needs.
LIMITS = {"MAX_FIELDS": 16, "MAX_FIELD_SIZE": 4096}


async def append_body(request: Request, path: Path, most: int) -> None:
    """Append a request's body to a file; what came is kept if the line breaks.

    Args:
        request: whose body it is.
        path: of the file.
        most: bytes that it may have.

    Raises:
        HTTPException: it has more.
        OutputError: the disk is full, or alike.
    """

    def append(piece: bytes) -> None:
        file.write(piece)
        file.flush()

    with writing(path), path.open("ab") as file, suppress(ClientDisconnect):
        async for piece in request.stream():
            if len(piece) > most:
                raise HTTPException(413, "more bytes than the recording was said to have")
            most -= len(piece)
            await run_in_threadpool(append, piece)


async def save_file_field(request: Request, folder: Path) -> tuple[Path, str]:
    """Save the field `file` of a multipart body (RFC 7578) in a folder.

    Returns:
        The path of the file there, and its owner's name of it.

    Raises:
        HTTPException: there is no such field, it is empty, or the body is not multipart.
        OutputError: the disk is full, or alike.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise HTTPException(415, "send multipart/form-data with a field `file`")
    files: list[File] = []
    config = {**LIMITS, "UPLOAD_DIR": str(folder), "UPLOAD_DELETE_TMP": False, "MAX_MEMORY_FILE_SIZE": 0}
    try:
        with writing(folder):
            parser = FormParser(kind.decode(), None, files.append, boundary=options[b"boundary"], config=config)
            async for piece in request.stream():
                await run_in_threadpool(parser.write, piece)
            parser.finalize()
    except ClientDisconnect:
        raise HTTPException(400, "the line broke") from None
    except FileError as error:
        raise OutputError(f"{folder}: cannot be written") from error
    except FormParserError as error:
        raise HTTPException(400, f"the body is not a multipart form ({error})") from error
    finally:
        for file in files:
            file.close()
    wanted = next((file for file in files if file.field_name == b"file"), None)
    if wanted is None:
        raise HTTPException(422, "the form has no file in a field `file`")
    if wanted.actual_file_name is None:
        raise HTTPException(415, "the file is empty")
    name = (wanted.file_name or b"").decode(errors="replace")
    return Path(wanted.actual_file_name.decode()), name or NAMELESS
