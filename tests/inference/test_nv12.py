"""The graph that makes the network's picture of NV12, against FFmpeg's scaler, which does it on the CPU."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.export.nv12 import build_nv12_graph, nv12_file
from polypstream.inference import nv12
from polypstream.inference.model_card import shipped_weights
from polypstream.inference.nv12 import Nv12Graph, area_weights
from polypstream.inference.providers import Provider, SessionSettings, open_session
from polypstream.inference.segmenter import Segmenter
from polypstream.media.pictures import planes_of
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from polypstream.stages.field_of_view import ViewCropper
from polypstream.stages.gpu_field_of_view import GpuViewCropper

SIZE = 256


def picture_of(rgb: np.ndarray, colorspace: int, color_range: int) -> av.VideoFrame:
    """A decoded picture, yuv420p."""
    picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
        format="yuv420p", dst_colorspace=colorspace, dst_color_range=color_range
    )
    picture.colorspace, picture.color_range = colorspace, color_range
    picture.pts, picture.time_base, picture.duration = 7, Fraction(1, 30), 1
    return picture


def inputs_of(picture: av.VideoFrame, view: FieldOfView) -> tuple[np.ndarray, Frame]:
    """The model's input by FFmpeg's scaler, and the frame as it leaves the GPU's stage."""
    [plain] = ViewCropper(view, SIZE)([Frame(0, picture, 7, Fraction(1, 30))])
    stage = GpuViewCropper(view, SIZE, Nv12Graph(view, SIZE, "cpu", 0), "nv12")
    [frame] = stage([Frame(0, picture.reformat(format="nv12"), 7, Fraction(1, 30))])
    assert (stage.on_gpu, stage.on_cpu) == (1, 0)
    return plain.model_input, frame


@pytest.fixture(scope="module")
def colon() -> np.ndarray:
    return DemoColon(DemoSettings(width=960, height=540)).render(40)[0]


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize(
    "view",
    [FieldOfView(0, 0, 960, 540), FieldOfView(130, 22, 701, 499), FieldOfView(400, 200, 180, 121)],
    ids=["whole", "box", "enlarged"],
)
def test_the_graph_scales_and_converts_like_ffmpeg(
    colon: np.ndarray, view: FieldOfView, colorspace: int, color_range: int
) -> None:
    expected, frame = inputs_of(picture_of(colon, colorspace, color_range), view)
    difference = np.abs(frame.model_input.astype(int) - expected.astype(int))
    assert difference.max() <= 6  # at edges of colour: FFmpeg rounds chroma between its two passes
    assert (difference <= 2).mean() > 0.999
    assert difference.mean() < 0.5


def test_padding_at_the_end_of_lines_does_not_count() -> None:
    """A GPU pads lines; so does FFmpeg on the CPU, for a width that is not a multiple of its alignment."""
    noise = np.random.default_rng(3).integers(0, 256, (122, 250, 3), np.uint8)
    picture = picture_of(noise, Colorspace.ITU601, ColorRange.MPEG)
    surface = picture.reformat(format="nv12")
    assert surface.planes[0].line_size > surface.width
    view = FieldOfView(0, 0, 250, 122)
    expected, frame = inputs_of(picture, view)
    assert (np.abs(frame.model_input.astype(int) - expected.astype(int)) <= 2).mean() > 0.99


@pytest.mark.parametrize("size", [(960, 540), (250, 122)])
def test_a_held_picture_comes_back_as_it_was_decoded(colon: np.ndarray, size: tuple[int, int]) -> None:
    picture = picture_of(colon[: size[1], : size[0]], Colorspace.ITU709, ColorRange.JPEG)
    before = [plane.copy() for plane in planes_of(picture)]
    _, frame = inputs_of(picture, FieldOfView(0, 0, *size))
    assert not isinstance(frame.picture, av.VideoFrame)
    assert (frame.picture.width, frame.picture.height, frame.picture.duration) == (*size, 1)
    back = frame.in_memory()
    assert frame.picture is back
    for plane, original in zip(planes_of(back), before, strict=True):
        assert np.array_equal(plane, original)
    assert (back.pts, back.time_base, back.duration) == (7, Fraction(1, 30), 1)
    assert (back.colorspace, back.color_range) == (Colorspace.ITU709, ColorRange.JPEG)


def test_a_held_picture_is_not_that_of_a_later_frame(colon: np.ndarray) -> None:
    """ONNX Runtime writes into outputs that are still bound."""
    view = FieldOfView(0, 0, 960, 540)
    stage = GpuViewCropper(view, SIZE, Nv12Graph(view, SIZE, "cpu", 0), "nv12")
    pictures = [picture_of(rgb, Colorspace.ITU709, ColorRange.MPEG) for rgb in (colon, 255 - colon)]
    frames = [Frame(i, each.reformat(format="nv12"), 7, Fraction(1, 30)) for i, each in enumerate(pictures)]
    stage(frames)
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.array_equal(planes_of(frame.in_memory())[0], planes_of(picture)[0])


@pytest.mark.slow
def test_the_same_picture_gives_the_same_mask() -> None:
    segmenter = Segmenter(shipped_weights(), "cpu")
    demo = DemoColon(DemoSettings(width=1280, height=720))
    view = FieldOfView(200, 0, 880, 720)
    polyp = False
    for index in range(30, 130, 20):
        picture = picture_of(demo.render(index)[0], Colorspace.ITU709, ColorRange.MPEG)
        expected, frame = inputs_of(picture, view)
        by_cpu, by_gpu = (segmenter.segment_one(each).astype(int) for each in (expected, frame.model_input))
        assert (np.abs(by_cpu - by_gpu) <= 2).mean() >= 0.9999
        assert (expected == frame.model_input).mean() >= 0.99
        polyp |= bool((by_cpu >= 128).any())
    assert polyp


def test_on_a_gpu_the_graph_runs_on_cuda_whatever_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's options name the input of the model, which the graph does not have."""
    asked: list[str] = []

    def opened(path: Path, provider: Provider, settings: SessionSettings) -> Any:
        asked.append(provider)
        assert not settings.tf32
        return open_session(path, "cpu", settings)

    monkeypatch.setattr(nv12, "open_session", opened)
    for provider in ("tensorrt", "cuda", "cpu"):
        Nv12Graph(FieldOfView(0, 0, 64, 64), SIZE, provider, 0)
    assert asked == ["cuda", "cuda", "cpu"]


def test_area_weights_are_means_over_areas() -> None:
    assert area_weights(1, 3, 5, 2).tolist() == pytest.approx(
        np.array([[0, 2 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 2 / 3, 0]])
    )
    assert area_weights(0, 2, 2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    for start, length, total, size in ((0, 1080, 1088, 256), (3, 100, 200, 256), (10, 1, 20, 4)):
        weights = area_weights(start, length, total, size)
        assert weights.sum(axis=1) == pytest.approx(np.ones(size), abs=1e-5)
        assert not weights[:, :start].any()
        assert not weights[:, start + length :].any()


def test_the_installed_graph_is_the_one_that_is_built() -> None:
    assert nv12_file().read_bytes() == build_nv12_graph().SerializeToString(deterministic=True)
