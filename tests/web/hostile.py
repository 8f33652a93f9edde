"""Files and bodies that attack a server: references to other files, false sizes, forms as an attacker writes them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image


def form(content: bytes, name: bytes = b"a.jpg", field: bytes = b"file") -> bytes:
    """A body of multipart/form-data with one file."""
    disposition = b'Content-Disposition: form-data; name="' + field + b'"; filename="' + name + b'"'
    return b"--x\r\n" + disposition + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
JSON = {"Content-Type": "application/json"}


def hls(target: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode()


def concat(target: str) -> bytes:
    return f"ffconcat version 1.0\nfile '{target}'\n".encode()


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, place and size of an MP4's boxes."""
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], start, size
        start += size


def with_box(data: bytes, path: list[bytes], box: bytes) -> bytes:
    """An MP4 with one of its boxes replaced."""
    for kind, start, size in boxes(data, 0, len(data)):
        if kind == path[0]:
            inner = with_box(data[start + 8 : start + size], path[1:], box) if path[1:] else None
            new = box if inner is None else struct.pack(">I4s", 8 + len(inner), kind) + inner
            return data[:start] + new + data[start + size :]
    raise ValueError(path)


def elsewhere(video: Path) -> bytes:
    """An MP4 without data whose samples are in another file, by an alias as QuickTime has them."""
    path, data = str(video).encode(), video.read_bytes()
    path += bytes(len(path) % 2)
    alias = bytes(10) + struct.pack(">28p", b"disk") + bytes(12) + struct.pack(">64p", video.name.encode()) + bytes(16)
    alias += bytes(20) + struct.pack(">HH", 2, len(path)) + path + b"\xff\xff" + bytes(18)  # an absolute path
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    box = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    changed = with_box(data, [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"], box)
    mdat, size = next((start, size) for kind, start, size in boxes(data, 0, len(data)) if kind == b"mdat")
    return changed[: mdat + 8] + bytes(size - 8) + changed[mdat + size :]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def tiff_claiming(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def bmp_claiming(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 100, 0, 0, 54) + header + bytes(46)


def blank(kind: str, width: int, height: int) -> bytes:
    """A real picture that is far smaller than what it unpacks to."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return file.getvalue()
