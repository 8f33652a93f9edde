"""The demo source: a rendered colon, played like a recording.

A demo is rendered once into the user's cache and then decoded from there, so that it costs what a recording costs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qsl

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from polypstream.core.config import VideoSettings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.errors import OutputError, SourceError
from polypstream.media.video import AnnotatedVideo, MaskVideo
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from polypstream.sources.recording import Recording

OnProgress = Callable[[int, int], None]
SCHEME = "demo:"
# Part of the cache's file names: raise it when the rendering changes.
VERSION = 1
# Good enough that what the network sees is the rendering, not the encoder.
CRF = 16
MAX_PIXELS = 7680 * 4320


def open_demo(uri: str, on_progress: OnProgress = lambda *_: None) -> Recording:
    """The recording behind a ``demo:`` address, rendered now if it is not in the cache.

    Args:
        uri: the address.
        on_progress: while it is rendered, told the frames done and all frames.

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
    """The name of the folder for a demo's results."""
    return f"demo-seed{settings.seed}"


def parse_demo(uri: str) -> DemoSettings:
    """Settings of ``demo:?seconds=10&seed=1&size=1280x720&rate=25``, each value optional.

    Raises:
        SourceError: naming the value that is wrong.
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
            raise SourceError(f"{uri}: no such value {key}; a demo has seconds, seed, size and rate") from None
        except (ValueError, ZeroDivisionError):
            raise SourceError(f"{uri}: {key}={text} cannot be read; write for instance size=1280x720") from None
    return checked(DemoSettings(**values), uri)  # type: ignore[arg-type]


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from ``1280x720``; ValueError if it is not of that form."""
    width, height = text.lower().split("x")
    return int(width), int(height)


def checked(settings: DemoSettings, origin: str) -> DemoSettings:
    """The settings, if a demo can be rendered from them.

    Raises:
        SourceError: naming the value that is out of range.
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
    """Render a demo recording; files appear only when they are whole.

    Args:
        settings: what to render.
        path: the MP4 file.
        truth: FFV1 grey video of the same frames, pixel value the number of the polyp, 0 none.
        on_progress: told the number of frames done and of all frames.

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
    """Where to write a file until it is whole: in a temporary folder beside it, on the same file system."""
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


def cache_folder() -> Path:
    """Where rendered demos are kept: polypstream/ in XDG_CACHE_HOME, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polypstream"
