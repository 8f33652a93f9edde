"""What `import polypstream` offers beside the types of its results: Detector and process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from polypstream.core.config import Settings
from polypstream.core.formatting import quoted
from polypstream.core.protocols import OnProgress
from polypstream.core.time_range import range_of
from polypstream.errors import ResultsExist, SourceError
from polypstream.inference.model_card import ModelCard
from polypstream.jobs import process as command
from polypstream.jobs.image import load_image, to_rgb
from polypstream.jobs.inputs import is_image
from polypstream.jobs.predictions import ImageResult, predict
from polypstream.jobs.results import Run, load_run
from polypstream.jobs.setup import make_segmenter, with_inference
from polypstream.jobs.track import FrameResults
from polypstream.stages.findings import choose_rules

log = logging.getLogger(__name__)


class Detector:
    """Finds polyps in images and recordings. Several threads may use one Detector.

    Args:
        model: path of an ONNX file made by `polypstream export` or `polypstream wrap`. None: as in the settings, which
            is "shipped" (the weights that come with polypstream) unless changed.
        provider: ONNX Runtime's execution provider: "cuda", "tensorrt", "openvino" or "cpu". None: as in the settings,
            which is "auto" (the fastest one that works on this machine) unless changed.
        settings: all other settings, from `load_settings`. None: the defaults, which config.yaml explains.

    Attributes:
        settings: in use.

    Raises:
        ModelError: the model file is missing, damaged, or was not made by polypstream.
        ProviderError: the provider does not work on this machine.

    Example:
        >>> import polypstream as pp
        >>> detector = pp.Detector(provider="cpu")
        >>> detector.provider
        'cpu'
    """

    def __init__(
        self, model: str | Path | None = None, provider: str | None = None, settings: Settings | None = None
    ) -> None:
        self.settings = with_inference(
            settings or Settings(), model=None if model is None else str(model), provider=provider
        )
        self._segmenter = make_segmenter(self.settings)
        for note in self._segmenter.notes:
            log.warning(note)
        card = self._segmenter.card
        self._rules = choose_rules(self.settings.findings, card.threshold, card.peak)

    @property
    def provider(self) -> str:
        """The execution provider in use."""
        return self._segmenter.provider

    @property
    def card(self) -> ModelCard:
        """What the model file says about itself: name, version, input size, thresholds, scores."""
        return self._segmenter.card

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> ImageResult:
        """Find polyps in one image.

        Args:
            image: path of a JPEG, PNG, TIFF, WebP or BMP file, Pillow image, or uint8 RGB array [H, W, 3]. (OpenCV
                reads BGR: pass `bgr[..., ::-1]`.) Files and Pillow images are turned as their EXIF data say.

        Raises:
            SourceError: it cannot be read, or is of another type, shape or dtype.
            TooLarge: the file has more than 40 million pixels, or more than 16,384 on a side.

        Example:
            >>> import polypstream as pp
            >>> result = pp.Detector()("image.jpg")
            >>> len(result.findings), result.mask.shape
            (1, (180, 320))
        """
        rgb = _rgb_of(image)
        return predict(rgb, self._segmenter.size, self._segmenter.segment_one, self._rules)

    def track(self, recording: str | Path, *, start: float | None = None, end: float | None = None) -> FrameResults:
        """Find polyps in a recording and follow them, as `polypstream process` does, without writing a file.

        Frames are computed in threads, a few ahead of the loop that takes them.

        Args:
            recording: path of a video or DICOM video, or a demo such as "demo:?seconds=10&seed=1".
            start: begin with the first frame at or after this time in seconds; None: with the first frame. Frame
                numbers then count from 0 at this frame; times stay those of the recording.
            end: end with the last frame before this time in seconds; None: with the last frame.

        Returns:
            An iterator of FrameResult, in order. A damaged recording ends early; then `damage` says why.

        Raises:
            SourceError: the recording cannot be opened, or has no frame in the range.
            SettingsError: `end` is not after `start`.

        Example:
            >>> import polypstream as pp
            >>> with pp.Detector().track("colon.mp4") as frames:
            ...     first = next(frames)
            >>> first.index, first.seconds
            (0, 0.0)
        """
        _check_recording(recording)
        return FrameResults(str(recording), self._segmenter, self.settings, range_of(start, end))

    def __repr__(self) -> str:
        return f"Detector({self.card.model_name} {self.card.model_version}, provider={self.provider!r})"


def process(
    recording: str | Path,
    output: str | Path,
    *,
    detector: Detector | None = None,
    start: float | None = None,
    end: float | None = None,
    masks: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> Run:
    """Annotate one recording, as `polypstream process RECORDING --output OUTPUT` does.

    The command reads each recording in a process of its own; this function does not. Should FFmpeg crash on a broken
    file, Python crashes too.

    Args:
        recording: path of a video or DICOM video, or a demo such as "demo:?seconds=10&seed=1".
        output: folder for results; those of this recording are in a folder of its name in it.
        detector: model and settings to use; None: a new Detector().
        start: begin with the first frame at or after this time in seconds; None: with the first frame. Frame numbers
            then count from 0 at this frame; times stay those of the recording.
        end: end with the last frame before this time in seconds; None: with the last frame.
        masks: write masks.mkv too.
        overwrite: replace results that exist.
        on_progress: called as on_progress(done, total) a few times a second; total is None if unknown.

    Returns:
        What was found. Of a damaged recording it holds what could be read: see `Run.summary["damage"]`.

    Raises:
        SourceError: the recording cannot be opened or read, or has no frame in the range.
        SettingsError: `end` is not after `start`.
        ResultsExist: results exist already, and `overwrite` is False.
        OutputError: results cannot be written.

    Example:
        >>> import polypstream as pp
        >>> run = pp.process("colon.mp4", "results", overwrite=True)
        >>> run.folder.name, len(run.tracks)
        ('colon', 1)
    """
    _check_recording(recording)
    detector = detector or Detector()
    job = command.Job(str(recording), Path(output), masks, overwrite, times=range_of(start, end))
    try:
        done = command.process(job, detector._segmenter, detector.settings, on_progress)
    except ResultsExist as error:
        raise ResultsExist(f"{error}; pass overwrite=True to replace them") from error
    if done.problem:
        log.warning(done.problem)
    for note in done.notes:
        log.info("%s: %s", done.name, note)
    return load_run(done.folder)


def _check_recording(recording: str | Path) -> None:
    """Refuse what the functions for one recording are not for, and say what is.

    Raises:
        SourceError: it is a folder or an image.
    """
    path = str(recording)
    if os.path.isdir(path):  # noqa: PTH112 -- Path.is_dir raises for long names
        raise SourceError(
            f"{path}: is a folder; pass one recording. Pass an image to a Detector: detector(image). The command "
            f"`polypstream process {quoted(Path(path))}` takes folders, and writes polyps.csv for their images"
        )
    if is_image(path) and os.path.isfile(path):  # noqa: PTH113
        raise SourceError(f"{path}: is an image; pass it to a Detector: detector({path!r})")


def _conversion_of(array: np.ndarray) -> str:
    """Say how to convert an array to RGB; empty if that is not known."""
    if array.dtype == np.uint8 and array.ndim == 2:
        return "; for a grey image pass numpy.stack([image] * 3, axis=-1)"
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 1:
        return "; for a grey image pass image.repeat(3, axis=-1)"
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 4:
        return "; for an RGBA image pass image[..., :3]"
    if np.issubdtype(array.dtype, np.floating) and array.ndim == 3 and array.shape[2] == 3:
        return "; for values from 0 to 1 pass (255 * image).round().astype(numpy.uint8)"
    return ""


def _rgb_of(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3].

    Raises:
        SourceError: it cannot be read, or is of another type, shape or dtype.
    """
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise SourceError(
                f"image: expected uint8 RGB [H, W, 3], got {image.dtype} {list(image.shape)}{_conversion_of(image)}"
            )
        return np.ascontiguousarray(image)
    if not isinstance(image, str | Path):
        raise SourceError(f"image: expected a path, a Pillow image or an array, got {type(image).__name__}")
    path = Path(image)
    if path.is_dir():
        raise SourceError(f"{path}: is a folder, not an image")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        return load_image(path)
    except SourceError as error:
        raise type(error)(f"{path}: {error}") from error
