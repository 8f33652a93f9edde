"""ZIP archives that are made while they are sent. Their files are stored, since video and images are compressed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from urllib.parse import quote
from zipfile import ZIP_STORED, ZipFile, ZipInfo

ZIP_TYPE = "application/zip"
# Bytes that are read at once.
CHUNK = 1 << 20
# Letters that file systems do not allow in names.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


class _Output:
    """A file that can only be written to, and that gives away what was written."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: ZipFile needs this method."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


def zip_chunks(files: Iterable[tuple[Path, str]]) -> Iterator[bytes]:
    """Yield the bytes of a ZIP archive. Memory holds one chunk at a time.

    Args:
        files: path of each file, and its name in the archive.
    """
    output = _Output()
    with ZipFile(output, "w", ZIP_STORED, strict_timestamps=False) as archive:  # type: ignore[call-overload]
        for path, name in files:
            info = ZipInfo.from_file(path, name, strict_timestamps=False)
            with path.open("rb") as source, archive.open(info, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield output.take()
    yield output.take()


def folder_name(recording: str) -> str:
    """Return a name for a folder that every file system allows.

    Args:
        recording: original name of the recording's file.
    """
    last = FORBIDDEN.sub("_", PurePath(recording.replace("\\", "/")).name)
    return PurePath(last).stem.strip(". ") or "recording"


def as_download(name: str) -> dict[str, str]:
    """Return the header that lets a browser save a response.

    Args:
        name: of the file.
    """
    return {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}"}
