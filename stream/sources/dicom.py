"""A DICOM video object as a recording.

Its pixel data are a video stream (MPEG-2, H.264 or HEVC, raw or in a container), split into items. The items are
joined in a temporary file, which is then read as an ordinary recording.
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
# How encapsulated pixel data begin in explicit little endian: tag (7FE0,0010), VR OB, undefined length.
PIXEL_DATA = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
ITEM, END_OF_ITEMS = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
BLOCK = 1 << 20
# A frame rate is a ratio of small numbers, such as 30000/1001. A frame time in milliseconds, as text, is rounded.
LARGEST_DENOMINATOR = 1001


def is_dicom(path: Path) -> bool:
    """Whether the content of a file is DICOM, whatever its name is.

    Args:
        path: the file.

    Returns:
        False also if the file cannot be read.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Dataset:
    """Read the data set of a DICOM file up to its pixel data.

    Args:
        path: the file.

    Raises:
        SourceError: it cannot be read.
        MissingExtra: pydicom is not installed.
    """
    with path.open("rb") as file, quiet():
        return _read_header(file, path)


def quiet() -> warnings.catch_warnings[None]:
    """Context manager that silences pydicom's warnings.

    Stored files often violate the standard slightly, and pydicom parses values only when they are accessed.
    """
    return warnings.catch_warnings(action="ignore")


class DicomVideo(Recording):
    """The recording in a DICOM video object. Its name is the path of the object.

    Args:
        path: the DICOM file.

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
        """Close the recording and remove the temporary file. May be called more than once."""
        super().close()
        self._folder.cleanup()


def _extract(path: Path, video: Path) -> Fraction | None:
    """Write the video stream of a DICOM file to a separate file.

    Args:
        path: the DICOM file.
        video: file to write.

    Returns:
        Frames per second, if the object gives them.
    """
    with path.open("rb") as file, quiet():
        header = _read_header(file, path)
        _check_is_video(header, path)
        with writing(video), video.open("wb") as stream:
            if not _copy_items(file, stream):
                raise SourceError(f"{path}: this DICOM file is cut off or holds no pixel data; get a whole copy")
        return _rate(header)


def _read_header(file: BinaryIO, path: Path) -> Dataset:
    """Read the data set before the pixel data. The file is left at the pixel data."""
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
    """Copy the items of encapsulated pixel data.

    The first item is a table of offsets, which a video does not need.

    Returns:
        False if the file ends too early.
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
    """Copy a number of bytes in blocks: an item can have gigabytes.

    Returns:
        False if there are fewer bytes.
    """
    while length:
        block = file.read(min(BLOCK, length))
        if not block:
            return False
        stream.write(block)
        length -= len(block)
    return True


def _rate(header: Dataset) -> Fraction | None:
    """Frames per second, from the most exact attribute that the object has."""
    frame_time = _number(header, "FrameTime")  # milliseconds
    rate = 1000 / frame_time if frame_time else None
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = rate or _number(header, keyword)
    return Fraction(rate).limit_denominator(LARGEST_DENOMINATOR) if rate else None


def _number(header: Dataset, keyword: str) -> float:
    """A positive number of the data set; 0 if there is none."""
    try:
        value: Any = header.get(keyword)
        return max(0.0, float(value or 0))
    except (TypeError, ValueError):
        return 0.0
