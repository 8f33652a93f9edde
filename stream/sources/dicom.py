"""A DICOM video object: a recording with a patient.

Its pixel data are a video stream (MPEG-2, H.264 or HEVC, raw or in a container) in pieces. They are put together in a
temporary file, which is then a recording like any other.
"""

from __future__ import annotations

import struct
import tempfile
import warnings
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from polypstream.core.extras import extra
from polypstream.core.files import writing
from polypstream.errors import SourceError
from polypstream.sources.recording import Recording, results_stem

if TYPE_CHECKING:
    from pydicom import Dataset

MAGIC_AT, MAGIC = 128, b"DICM"
# Encapsulated pixel data, as they begin in explicit little endian: tag (7FE0,0010), VR OB, undefined length.
PIXEL_DATA = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
ITEM, END_OF_ITEMS = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
BLOCK = 1 << 20
# A rate is a ratio of small numbers, such as 30000/1001; a frame time in milliseconds, as text, has lost that.
LARGEST_DENOMINATOR = 1001


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, whatever its name; what cannot be read does not."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Dataset:
    """What a DICOM file says before its pixel data.

    Raises:
        SourceError: it cannot be read.
        MissingExtra: pydicom is not installed.
    """
    with path.open("rb") as file, quiet():
        return _read_header(file, path)


def quiet() -> warnings.catch_warnings[None]:
    """Without pydicom's warnings: what archives store is often slightly wrong, and values are parsed when asked for."""
    return warnings.catch_warnings(action="ignore")


class DicomVideo(Recording):
    """The recording in a DICOM video object; to people it has the name of the object.

    Raises:
        SourceError: the file is no video object, is cut off, or its video cannot be decoded.
        OutputError: the temporary file cannot be written.
        MissingExtra: pydicom is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="polypstream-")
        video = Path(self._folder.name) / "video"
        try:
            rate = _extract(path, video)
            try:
                super().__init__(video, rate)
            except SourceError as error:
                raise SourceError(f"{path}: the video in this DICOM file cannot be decoded") from error
        except BaseException:
            self._folder.cleanup()
            raise
        self.name, self.stem = str(path), results_stem(path)

    def close(self) -> None:
        """Close the recording and remove the temporary file; more than once does no harm."""
        super().close()
        self._folder.cleanup()


def _extract(path: Path, video: Path) -> Fraction | None:
    """Write the video stream of a DICOM file to a file of its own; returns its pictures per second, if it says so."""
    with path.open("rb") as file, quiet():
        header = _read_header(file, path)
        _check_is_video(header, path)
        with writing(video), video.open("wb") as stream:
            if not _copy_items(file, stream):
                raise SourceError(f"{path}: this DICOM file is cut off or holds no pixel data; get a whole copy")
        return _rate(header)


def _read_header(file: BinaryIO, path: Path) -> Dataset:
    """The data set before the pixel data, where the file is left."""
    with extra("dicom", f"{path}: is a DICOM file; reading it"):
        from pydicom import dcmread
    try:
        return dcmread(file, stop_before_pixels=True)
    except Exception as error:  # a damaged data set can fail anywhere in the parser
        raise SourceError(f"{path}: this DICOM file is damaged and cannot be read") from error


def _check_is_video(header: Dataset, path: Path) -> None:
    from pydicom.uid import UID, MPEGTransferSyntaxes

    syntax = header.file_meta.get("TransferSyntaxUID", UID(""))
    if syntax not in MPEGTransferSyntaxes:
        kind = header.file_meta.get("MediaStorageSOPClassUID", UID("")).name or "unknown kind"
        raise SourceError(
            f"{path}: is a DICOM file ({kind}, {syntax.name or 'unknown transfer syntax'}) without a video; "
            "MPEG-2, H.264 and HEVC videos can be read"
        )


def _copy_items(file: BinaryIO, stream: BinaryIO) -> bool:
    """Copy what the items of encapsulated pixel data hold; False if the file ends too early.

    The first item is a table of offsets, which a video does not need.
    """
    if file.read(len(PIXEL_DATA)) != PIXEL_DATA:
        return False
    table, copied = True, 0
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) != ITEM:
            return (group, element) == END_OF_ITEMS and copied > 0
        if table:
            file.seek(length, 1)
            table = False
        elif not _copy(file, stream, length):
            return False
        else:
            copied += length
    return False


def _copy(file: BinaryIO, stream: BinaryIO, length: int) -> bool:
    """Copy so many bytes, in blocks, for an item can be gigabytes; False if there are fewer."""
    while length:
        block = file.read(min(BLOCK, length))
        if not block:
            return False
        stream.write(block)
        length -= len(block)
    return True


def _rate(header: Dataset) -> Fraction | None:
    """Pictures per second, by the most exact of what the object says of its time."""
    frame_time = _number(header, "FrameTime")  # milliseconds
    rate = 1000 / frame_time if frame_time else None
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = rate or _number(header, keyword)
    return Fraction(rate).limit_denominator(LARGEST_DENOMINATOR) if rate else None


def _number(header: Dataset, keyword: str) -> float:
    """A positive number of the data set, 0 if there is none."""
    try:
        value: Any = header.get(keyword)
        return max(0.0, float(value or 0))
    except (TypeError, ValueError):
        return 0.0
