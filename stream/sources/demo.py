"""The demo source: a rendered colonoscopy with known polyps, read like a recording.

A demo is rendered once, into the user's cache, and decoded from there. So reading it costs what reading a recording
costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qsl

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from polypstream.core.cache import cache_folder
from polypstream.core.config import VideoSettings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.errors import OutputError, SourceError
from polypstream.media.video import AnnotatedVideo, MaskVideo
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from polypstream.sources.recording import Recording

OnProgress = Callable[[int, int], None]
SCHEME = "demo:"
# Part of the cache's file names. Increase it when the rendering changes.
VERSION = 1
# x264's quality: high enough that encoding does not affect what the model finds.
CRF = 16
MAX_PIXELS = 7680 * 4320


def open_demo(uri: str, on_progress: OnProgress = lambda *_: None) -> Recording:
    """Open the recording of a ``demo:`` address. It is rendered first if it is not in the cache.

    Args:
        uri: the address, as for `parse_demo`.
        on_progress: called as on_progress(done, total) with frame counts while the demo is rendered.

    Returns:
        The recording, with the address as its name.

    Raises:
        SourceError: the address holds an unknown or impossible value.
        OutputError: the cache cannot be written.
    """
    settings = parse_demo(uri)
    name = "-".join(str(value).replace("/", "over") for value in asdict(settings).values())
    path = cache_folder() / f"demo-v{VERSION}-{name}.mp4"
    if not path.exists():
        render_demo(settings, path, on_progress=on_progress)
    recording = Recording(path)
    recording.name, recording.stem = uri, demo_stem(settings)
    return recording


def demo_stem(settings: DemoSettings) -> str:
    """Name of the folder for a demo's results.

    Args:
        settings: settings of the demo.
    """
    return f"demo-seed{settings.seed}"


def parse_demo(uri: str) -> DemoSettings:
    """Parse an address such as ``demo:?seconds=10&seed=1&size=1280x720&rate=25``. Each value is optional.

    Args:
        uri: the address.

    Raises:
        SourceError: a value is unknown, malformed or out of range; the message names it.
    """
    wanted = dict(parse_qsl(uri.removeprefix(SCHEME).removeprefix("?"), keep_blank_values=True))
    values: dict[str, object] = {}
    for key, text in wanted.items():
        try:
            if key == "size":
                values["width"], values["height"] = parse_size(text)
            else:
                values[key] = {"seconds": float, "seed": int, "rate": Fraction}[key](text)
        except KeyError:
            raise SourceError(f"{uri}: there is no value {key}; a demo has seconds, seed, size and rate") from None
        except (ValueError, ZeroDivisionError):
            example = {"size": "1280x720", "seconds": "10", "seed": "1", "rate": "25"}[key]
            raise SourceError(f"{uri}: {key}={text} cannot be read; write for instance {key}={example}") from None
    return checked(DemoSettings(**values), uri)  # type: ignore[arg-type]


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size such as ``1280x720``.

    Args:
        text: width and height in pixels.

    Returns:
        Width and height.

    Raises:
        ValueError: the text is not of this form.
    """
    width, height = text.lower().split("x")
    return int(width), int(height)


def checked(settings: DemoSettings, origin: str) -> DemoSettings:
    """Check that a demo can be rendered.

    Args:
        settings: what to render.
        origin: what the error message names as the cause, such as the address.

    Returns:
        The same settings.

    Raises:
        SourceError: a value is out of range; the message names it.
    """
    for wrong, what in (
        (not 0 < settings.seconds <= 36_000, "seconds must be over 0 and at most 36000"),
        (not 0 <= settings.seed < 2**32, "seed must be between 0 and 4294967295"),
        (not 0 < settings.rate <= 240, "rate must be over 0 and at most 240 frames per second"),
        (min(settings.width, settings.height) < 64, "the size must be at least 64x64"),
        (settings.width * settings.height > MAX_PIXELS, "the size must be at most 7680x4320"),
    ):
        if wrong:
            raise SourceError(f"{origin}: {what}")
    return settings


def render_demo(
    settings: DemoSettings, path: Path, truth: Path | None = None, on_progress: OnProgress = lambda *_: None
) -> None:
    """Render a demo recording. The files appear only when they are complete.

    Args:
        settings: what to render.
        path: MP4 file to write.
        truth: file for an FFV1 grey video of the same frames. Its pixel values are polyp numbers, 0 where there is no
            polyp. None: not written.
        on_progress: called as on_progress(done, total) with frame counts.

    Raises:
        OutputError: a file cannot be written.
    """
    targets = [path] if truth is None else [path, truth]
    with ExitStack() as stack:
        try:
            parts = [_unfinished(target, stack) for target in targets]
        except OSError as error:
            raise OutputError(f"{error.filename}: cannot be written ({error.strerror})") from error
        _render(settings, parts[0], parts[1] if truth else None, on_progress)
        for part, target in zip(parts, targets, strict=True):
            try:
                part.replace(target)
            except OSError as error:
                raise OutputError(f"{target}: cannot be written ({error.strerror})") from error


def _unfinished(target: Path, stack: ExitStack) -> Path:
    """Path to write a file to until it is complete: in a temporary folder beside it, so on the same file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=target.parent, prefix=".rendering-"))
    return Path(folder) / f"unfinished{target.suffix}"


def _render(settings: DemoSettings, path: Path, truth: Path | None, on_progress: OnProgress) -> None:
    colon, pictures = DemoColon(settings), _picture_format(settings)
    with ExitStack() as stack:
        video = stack.enter_context(closing(AnnotatedVideo(path, pictures, None, VideoSettings(crf=CRF))))
        truth_video = stack.enter_context(closing(MaskVideo(truth, pictures))) if truth else None
        for index in range(len(colon)):
            rgb, numbers = colon.render(index)
            picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
                format=pictures.pixel_format, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            picture.pts, picture.time_base = index, pictures.time_base
            video.write(Frame(index, picture, index, pictures.time_base))
            if truth_video:
                truth_video.write_grey(numbers, index)
            on_progress(index + 1, len(colon))


def _picture_format(settings: DemoSettings) -> PictureFormat:
    # H.264 stores an odd width or height only without chroma subsampling.
    odd = settings.width % 2 or settings.height % 2
    return PictureFormat(
        width=settings.width,
        height=settings.height,
        pixel_format="yuv444p" if odd else "yuv420p",
        time_base=1 / settings.rate,
        rate=settings.rate,
        colorspace=int(Colorspace.ITU709),
        color_range=int(ColorRange.MPEG),
        color_primaries=int(ColorPrimaries.BT709),
        color_trc=int(ColorTrc.BT709),
    )
