"""De-identification: a source whose frames keep nothing but the endoscope's field of view.

Patient data are found in many places: burnt-in text around the view (name, date, device); the file's metadata,
chapters, subtitles, timecodes, sound and name; frames filmed outside the body. Each frame is replaced before any
other stage sees it, so no output can contain what was removed. Text burnt in inside the view is not found.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from av import VideoFrame

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.protocols import Source
from polypstream.errors import SettingsError, SourceError
from polypstream.media.color import to_yuv
from polypstream.media.pictures import fresh_like, planes_of
from polypstream.media.scaling import Scaler
from polypstream.stages.field_of_view import lit_outline
from polypstream.stages.quality import SIDE, inspect

# For this long after a frame from outside the body, frames are blanked too: the camera may still be outside.
OUTSIDE_HOLD_S = 1.0
BLANKED = "frames blanked because they, or a frame up to a second earlier, seem to show the outside of the body: "
MIN_SALT_LENGTH = 16
NAME_DIGITS = 16


class Deidentified:
    """A Source that yields the frames of another source, de-identified.

    Args:
        source: the source to de-identify; `close` closes it too.
        view: field of view given to the model.
        settings: settings of the run.
        name: name to use in place of the source's own; None: the file name without its folders.
        since: first pts from which blanked frames are counted; None: all are counted.

    Raises:
        SourceError: the settings ask to find the field of view, and it was not found.
    """

    def __init__(
        self,
        source: Source,
        view: FieldOfView,
        settings: Settings,
        name: str | None = None,
        since: int | None = None,
    ) -> None:
        self._source, self._blank_outside, self._since = source, settings.deidentify.blank_outside, since
        self.name = name or Path(source.name).name
        self.stem = name or source.stem
        self.path: Path | None = None  # sinks must not copy data from the file
        self.format, self.shifts = source.format, source.shifts
        self.damage, self.notes = source.damage, source.notes
        inside = self._inside(view, settings)
        hidden = 1 - cv2.countNonZero(inside) / inside.size
        self._masks = _plane_masks(inside, self.format.pixel_format)
        self._to_thumbnail = Scaler("rgb24", lambda _: (SIDE, SIDE), (view.x, view.y, view.width, view.height))
        self._outside_until = float("-inf")
        self.notes.append(
            f"de-identified: {hidden:.0%} of the picture blacked out; sound, subtitles, chapters and metadata left out"
        )

    def _inside(self, view: FieldOfView, settings: Settings) -> np.ndarray:
        """Find the pixels to keep.

        Returns:
            uint8 [height, width], 255 where the frame is kept.
        """
        width, height = self.format.width, self.format.height
        outline = lit_outline(self._source.thumbnails(), width, height)
        box = np.zeros((height, width), np.uint8)
        view.crop(box)[:] = 255
        if outline is not None:
            return box & cv2.fillConvexPoly(np.zeros_like(box), outline, 255)
        if settings.view.field_of_view == "auto":
            raise SourceError(
                f"{self.name}: its field of view was not found, so nothing could be blacked out around it; "
                "give the box with the setting 'view.field_of_view=[left, top, width, height]'"
            )
        return box

    def frames(self) -> Iterator[Frame]:
        """Yield every frame of the source, de-identified.

        After the last frame, the number of blanked frames is added to `notes`.
        """
        blanked = 0
        for frame in self._source.frames():
            frame.picture, frame.as_recorded = self._cleaned(frame.in_memory()), False
            if self._blank_outside and self._is_outside(frame):
                frame.picture = self._cleaned(frame.in_memory(), blank=True)
                blanked += self._since is None or frame.pts >= self._since
            yield frame
        if blanked:
            self.notes.append(f"{BLANKED}{blanked}")

    def _cleaned(self, picture: VideoFrame, blank: bool = False) -> VideoFrame:
        """Copy a frame without its side data (such as captions and timecodes), black outside the view.

        Args:
            picture: the decoded frame.
            blank: make the whole frame black.
        """
        cleaned = fresh_like(picture)
        for copy, original, mask, black in zip(
            planes_of(cleaned), planes_of(picture), self._masks, to_yuv((0, 0, 0), picture), strict=True
        ):
            copy[:] = round(black)
            if not blank:
                cv2.copyTo(original, mask, copy)
        return cleaned

    def _is_outside(self, frame: Frame) -> bool:
        if inspect(self._to_thumbnail(frame.in_memory()).to_ndarray()).outside:
            self._outside_until = frame.seconds + OUTSIDE_HOLD_S
        return frame.seconds < self._outside_until

    @property
    def expected_frames(self) -> int | None:
        """Number of frames that the source expects; None: unknown."""
        return self._source.expected_frames

    def thumbnails(self) -> list[np.ndarray]:
        """The source's thumbnails. They are used to find the field of view and never written."""
        return self._source.thumbnails()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _plane_masks(inside: np.ndarray, pixel_format: str) -> Sequence[np.ndarray]:
    """Make a mask for each plane of a frame.

    A chroma sample is kept only if all of its pixels are kept.

    Args:
        inside: uint8 [height, width], 255 where the frame is kept.
        pixel_format: FFmpeg's name of the frame's pixel format.

    Returns:
        uint8 masks of the planes' sizes, 255 where a sample is kept.
    """
    planes = planes_of(VideoFrame(inside.shape[1], inside.shape[0], pixel_format))
    shares = (cv2.resize(inside, plane.shape[::-1], interpolation=cv2.INTER_AREA) for plane in planes)
    return [cv2.compare(share, 255, cv2.CMP_EQ) for share in shares]


def hashed_name(name: str, salt: bytes) -> str:
    """Hash a name with a salt: HMAC-SHA256 (RFC 2104).

    The result is the same for the same name and salt. Without the salt the name cannot be recovered.

    Args:
        name: name to hash.
        salt: secret bytes, as `read_salt` returns them.

    Returns:
        16 hexadecimal digits.
    """
    return hmac.new(salt, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:NAME_DIGITS]


def read_salt(path: Path) -> bytes:
    """Read the salt for `hashed_name` from a file.

    Args:
        path: file that holds the salt.

    Returns:
        The salt without leading and trailing white space.

    Raises:
        SettingsError: the file cannot be read, or holds fewer than 16 characters.
    """
    try:
        salt = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); make one by openssl rand -hex 32") from error
    if len(salt) < MIN_SALT_LENGTH:
        raise SettingsError(f"{path}: has fewer than {MIN_SALT_LENGTH} characters; make a salt by openssl rand -hex 32")
    return salt
