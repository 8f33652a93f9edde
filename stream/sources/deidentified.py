"""De-identification: a source of whose pictures nothing is left but the endoscope's view.

What tells who a patient is stands around the view (name, date, device), in a file's metadata, chapters, subtitles,
timecodes and sound, in its name, and in pictures filmed outside the body. Each frame is replaced before any other stage
sees it, so nothing that is written can hold what was taken away. Text burnt in inside the view is not found.
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

# So long after a picture from outside the body the camera may still be there.
STILL_OUTSIDE_S = 1.0
BLANKED = "frames that look as if outside the body, or a second after, were blanked"
LEAST_SALT = 16
NAME_DIGITS = 16


class Deidentified:
    """A source without what tells who the patient is; a Source itself.

    Args:
        source: what is to be de-identified; it is closed with this one.
        view: the field of view that the network sees.
        settings: of the run.
        name: in place of the source's own; None: its file's name without the folders.
        since: pts from which blanked frames are counted.

    Raises:
        SourceError: the view was to be found and cannot be.
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
        self.path: Path | None = None  # no sink may copy from it
        self.format, self.shifts = source.format, source.shifts
        self.damage, self.notes = source.damage, source.notes
        inside = self._inside(view, settings)
        hidden = 1 - cv2.countNonZero(inside) / inside.size
        self._masks = _plane_masks(inside, self.format.pixel_format)
        self._small = Scaler("rgb24", lambda _: (SIDE, SIDE), (view.x, view.y, view.width, view.height))
        self._outside_until = float("-inf")
        self.notes.append(
            f"de-identified: {hidden:.0%} of the picture blacked out; sound, subtitles, chapters and metadata left out"
        )

    def _inside(self, view: FieldOfView, settings: Settings) -> np.ndarray:
        """uint8 [height, width], 255 where the picture is kept."""
        width, height = self.format.width, self.format.height
        outline = lit_outline(self._source.thumbnails(), width, height)
        box = np.zeros((height, width), np.uint8)
        view.crop(box)[:] = 255
        if outline is not None:
            return box & cv2.fillConvexPoly(np.zeros_like(box), outline, 255)
        if settings.view.field_of_view == "auto":
            raise SourceError(
                f"{self.name}: its field of view was not found, so nothing could be blacked out around it; "
                "give the box by --set 'view.field_of_view=[left, top, width, height]'"
            )
        return box

    def frames(self) -> Iterator[Frame]:
        """Every frame of the source, cleaned. What was blanked is noted in `notes` when the last one is out."""
        blanked = 0
        for frame in self._source.frames():
            frame.picture = self._cleaned(frame.picture)
            if self._blank_outside and self._is_outside(frame):
                frame.picture = self._cleaned(frame.picture, blank=True)
                blanked += self._since is None or frame.pts >= self._since
            yield frame
        if blanked:
            self.notes.append(f"{blanked} {BLANKED}")

    def _cleaned(self, picture: VideoFrame, blank: bool = False) -> VideoFrame:
        """A picture of its own, without side data such as captions and timecodes; all black if it is to be blank."""
        cleaned = fresh_like(picture)
        for own, theirs, mask, black in zip(
            planes_of(cleaned), planes_of(picture), self._masks, to_yuv((0, 0, 0), picture), strict=True
        ):
            own[:] = round(black)
            if not blank:
                cv2.copyTo(theirs, mask, own)
        return cleaned

    def _is_outside(self, frame: Frame) -> bool:
        if inspect(self._small(frame.picture).to_ndarray()).outside:
            self._outside_until = frame.seconds + STILL_OUTSIDE_S
        return frame.seconds < self._outside_until

    @property
    def expected_frames(self) -> int | None:
        """As of the source."""
        return self._source.expected_frames

    def thumbnails(self) -> list[np.ndarray]:
        """As of the source: they are looked at, never written."""
        return self._source.thumbnails()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _plane_masks(inside: np.ndarray, pixel_format: str) -> Sequence[np.ndarray]:
    """For each plane which of its samples are kept: a chroma sample if all of its pixels are."""
    planes = planes_of(VideoFrame(inside.shape[1], inside.shape[0], pixel_format))
    shares = (cv2.resize(inside, plane.shape[::-1], interpolation=cv2.INTER_AREA) for plane in planes)
    return [cv2.compare(share, 255, cv2.CMP_EQ) for share in shares]


def hashed_name(name: str, salt: bytes) -> str:
    """The same for the same name and salt, and not to be turned back without the salt (HMAC-SHA256, RFC 2104)."""
    return hmac.new(salt, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:NAME_DIGITS]


def read_salt(path: Path) -> bytes:
    """The salt for names.

    Raises:
        SettingsError: the file is missing or short.
    """
    try:
        salt = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); make one by openssl rand -hex 32") from error
    if len(salt) < LEAST_SALT:
        raise SettingsError(f"{path}: has fewer than {LEAST_SALT} characters; make a salt by openssl rand -hex 32")
    return salt
