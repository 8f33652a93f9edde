"""What pictures look like to people: shape of pixels, range, fields, orientation, and odd tags and side data."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from polypstream.core.config import load_settings
from polypstream.core.frame import PictureFormat
from polypstream.core.orientation import ONE, Orientation
from polypstream.jobs.process import Job, ProcessResult, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.media.jpeg import Jpeg
from polypstream.media.pictures import Conformer, field_order_of, planes_of
from polypstream.sources.recording import Recording
from tests.conftest import Clip, frames_of, make_clip, picture

Make = Callable[..., Path]
SMALL = {"width": 160, "height": 120}
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


@pytest.fixture
def annotate(red_model: Path, tmp_path: Path) -> Callable[[Path], ProcessResult]:
    settings = with_model(load_settings(None, ["inference.provider=cpu", "findings.steady=false"]), red_model)

    def annotated(recording: Path) -> ProcessResult:
        job = Job(str(recording), tmp_path / "results", masks=True, overwrite=True)
        found = process(job, make_segmenter(settings), settings)
        assert found.problem == ""
        return found

    return annotated


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-y", "-loglevel", "error", "-nostdin", *map(str, arguments)], check=True)


def probe(path: Path, *entries: str) -> list[str]:
    """What another program says of the pictures of a file."""
    wanted = ["-select_streams", "v:0", "-show_entries", f"stream={','.join(entries)}", "-of", "csv=p=0"]
    told = subprocess.run(["ffprobe", "-v", "error", *wanted, path], capture_output=True, text=True, check=True)
    return told.stdout.strip().strip(",").split(",")


# Shape of pixels


@needs_ffmpeg
@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(("stored", "said"), [("1/1", "16/9"), ("64/45", "5/4"), ("16/15", "16/9")])
def test_the_containers_word_on_the_shape_of_pixels_goes_before_the_pictures(
    container: str, stored: str, said: str, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    pictures, recording = tmp_path / "pictures.mp4", tmp_path / f"shape.{container}"
    source = ["-f", "lavfi", "-i", "testsrc2=rate=25:size=180x144:duration=0.4"]
    ffmpeg(*source, "-vf", f"setsar={stored}", "-c:v", "libx264", pictures)
    ffmpeg("-i", pictures, "-c", "copy", "-aspect", said.replace("/", ":"), recording)
    expected = Fraction(said) / Fraction(180, 144)
    assert Recording(recording).format.sample_aspect_ratio == expected
    assert probe(annotate(recording).folder / "annotated.mp4", "sample_aspect_ratio") == [
        f"{expected.numerator}:{expected.denominator}"
    ]


def joined(tmp_path: Path, *clips: Clip) -> Path:
    """Transport streams one behind the other, as a recorder writes whose input changes."""
    path = tmp_path / "changes.ts"
    path.write_bytes(b"".join(make_clip(tmp_path, clip).read_bytes() for clip in clips))
    return path


def roundness(grey: np.ndarray) -> float:
    """Width over height of the red disc, in a picture of red minus green."""
    disc = cv2.boundingRect((grey > 60).astype(np.uint8))
    return disc[2] / disc[3]


@pytest.mark.parametrize(
    "second",
    [
        Clip(name="b.ts", frames=10, sample_aspect_ratio=Fraction(4, 3)),
        Clip(name="b.ts", frames=10, width=480, height=240),
        Clip(name="b.ts", frames=10, width=160, height=240),
    ],
    ids=["shape", "wider", "taller"],
)
def test_round_things_stay_round_where_size_or_shape_change_midway(
    second: Clip, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    first = Clip(name="a.ts", frames=10, sample_aspect_ratio=Fraction(1))
    found = annotate(joined(tmp_path, first, second))
    assert found.frames == 20
    assert any("10 pictures of another size or pixel shape" in note for note in found.notes)
    shape = second.sample_aspect_ratio or Fraction(1)
    for rgb in frames_of(found.folder / "annotated.mp4", "rgb24")[10:13]:
        assert rgb.shape == (240, 320, 3)
        red = rgb[:, :, 0].astype(int) - rgb[:, :, 1]
        # In the recording itself the disc is round in stored pixels.
        assert roundness(red) == pytest.approx(float(shape), rel=0.12)


# Range and colours


def test_a_range_that_changes_midway_is_converted(annotate: Callable[[Path], ProcessResult], tmp_path: Path) -> None:
    limited = Clip(name="a.ts", frames=10, colours={"color_range": 1})
    full = Clip(name="b.ts", frames=10, pixel_format="yuvj420p", colours={"color_range": 2})
    found = annotate(joined(tmp_path, limited, full))
    shown = frames_of(found.folder / "annotated.mp4", "rgb24")
    corner = [float(rgb[5:40, 5:40].mean()) for rgb in shown]
    assert corner == pytest.approx([90] * 20, abs=2), "grey 90 on both sides"


def test_another_matrix_is_converted_and_the_same_is_left_alone() -> None:
    pictures = PictureFormat(64, 48, "yuv420p", Fraction(1, 25), Fraction(25), colorspace=1, color_range=1)
    red = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (200, 30, 30), np.uint8), "rgb24")
    conform = Conformer(pictures)
    in_709 = red.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
    in_601 = red.reformat(format="yuv420p", dst_colorspace=5, dst_color_range=1)
    in_709.colorspace = in_709.color_range = 1
    in_601.colorspace, in_601.color_range = 5, 1
    for each in (in_709, in_601):
        each.pts, each.time_base = 0, pictures.time_base
    assert conform(in_709) is in_709
    converted = conform(in_601)
    assert converted.colorspace == 1
    for wanted, got in zip(planes_of(in_709), planes_of(converted), strict=True):
        assert np.abs(wanted.astype(int) - got).max() <= 2


@needs_ffmpeg
@pytest.mark.parametrize(
    "tags",
    [
        *(f"matrix_coefficients={number}" for number in (3, 8, 10, 11, 12, 13, 14, 15)),
        "colour_primaries=3:transfer_characteristics=3",
    ],
)
def test_colour_tags_that_nobody_knows_count_as_none(
    tags: str, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    recording = tmp_path / "odd.ts"
    source = ["-f", "lavfi", "-i", "testsrc2=rate=25:size=320x240:duration=0.4", "-pix_fmt", "yuv420p"]
    ffmpeg(*source, "-c:v", "libx264", "-bsf:v", f"h264_metadata={tags}", recording)
    found = annotate(recording)
    assert found.frames == 10
    assert probe(found.folder / "annotated.mp4", "color_space") == ["unknown"]


# Fields


@needs_ffmpeg
@pytest.mark.parametrize(("order", "said"), [("tff", "tt"), ("bff", "bb")])
@pytest.mark.parametrize("told_by", ["container", "pictures", "later pictures"])
def test_the_order_of_fields_is_kept(
    told_by: str, order: str, said: str, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    upper = "top" if order == "tff" else "bottom"
    woven = f"tinterlace=interleave_{upper},setfield={order}"
    source = ["-f", "lavfi", "-i", "testsrc2=rate=50:size=320x240:duration=2", "-pix_fmt", "yuv420p"]
    coded = ["-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-q:v", 3]
    if told_by == "container":
        recording = tmp_path / "fields.mkv"
        ffmpeg(*source, "-vf", woven, "-c:v", "huffyuv", "-field_order", said, recording)
    else:
        recording = tmp_path / "fields.ts"
        ffmpeg(*source, "-vf", woven, *coded, recording)
    if told_by == "later pictures":
        still = tmp_path / "still.ts"
        title = ["-f", "lavfi", "-i", "color=gray:rate=25:size=320x240:duration=1", "-pix_fmt", "yuv420p"]
        ffmpeg(*title, "-c:v", "mpeg2video", "-q:v", 3, still)
        recording.write_bytes(still.read_bytes() + recording.read_bytes())
    assert Recording(recording).format.field_order == order
    annotated = annotate(recording).folder / "annotated.mp4"
    assert probe(annotated, "field_order") == [said]
    with av.open(str(annotated)) as file:
        assert {field_order_of(frame) for frame in file.decode(video=0)} == {order}


# Orientation


def matrix(a: int, b: int, c: int, d: int) -> tuple[int, ...]:
    return a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30


@pytest.mark.parametrize("shape", [Fraction(1), Fraction(3, 2), Fraction(2, 3)])
@pytest.mark.parametrize(
    ("entries", "upright"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((0, -1, 1, 0), lambda p: np.rot90(p)),
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((0, 1, -1, 0), lambda p: np.rot90(p, 3)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    ],
    ids=["as it is", "left", "half", "right", "mirrored", "upside down", "swapped"],
)
def test_pictures_masks_and_points_are_turned_alike(
    entries: tuple[int, int, int, int], upright: Callable[[np.ndarray], np.ndarray], shape: Fraction
) -> None:
    orientation = Orientation.of(matrix(*entries), shape)
    plane = np.zeros((48, 64), np.uint8)
    plane[10:13, 50:54] = 200
    turned = orientation.plane(plane)
    assert (turned == upright(plane)).all()
    assert (orientation.stored(turned) == plane).all()
    grey = av.VideoFrame.from_ndarray(plane, "gray").reformat(format="yuv420p", dst_color_range=1)
    jpeg = np.asarray(Image.open(io.BytesIO(Jpeg(4096, 2)(grey, orientation))).convert("L"))
    assert jpeg.shape[::-1] == tuple(side & ~1 for side in orientation.size(64, 48))
    (corner, other) = orientation.points(np.array([(50.0, 10.0), (54.0, 13.0)]), 64, 48)
    left, top = np.minimum(corner, other).round().astype(int)
    right, bottom = np.maximum(corner, other).round().astype(int)
    inside = np.zeros(jpeg.shape, bool)
    inside[top:bottom, left:right] = True
    assert jpeg[inside].mean() > 5 * max(1, jpeg[~inside].mean())


def test_angles_that_are_no_quarter_turn_are_not_shown() -> None:
    slanted = (*(int(entry * ONE) for entry in (0.87, 0.5, 0, -0.5, 0.87, 0, 0, 0)), 1 << 30)
    assert not Orientation.of(slanted, Fraction(0)).turns


@needs_ffmpeg
@pytest.mark.parametrize(("rotation", "shape"), [(90, Fraction(1)), (180, Fraction(3, 2)), (270, Fraction(2, 3))])
def test_snapshots_are_as_players_show_the_recording(
    rotation: int, shape: Fraction, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    clip = Clip(name="turned.mp4", frames=5, rotation=rotation, sample_aspect_ratio=shape)
    folder = annotate(make_clip(tmp_path, clip)).folder
    square = "scale='if(gt(sar,1),iw*sar,iw)':'if(gt(sar,1),ih,ih/sar)'"
    ffmpeg("-i", folder / "annotated.mp4", "-vf", square, "-frames:v", 1, tmp_path / "shown.png")
    shown = cv2.imread(str(tmp_path / "shown.png")).astype(int)
    snapshot = cv2.imread(str(folder / "snapshots" / "track-1.jpg")).astype(int)
    assert np.abs(snapshot.shape[0] - shown.shape[0]) <= 1
    height, width = min(snapshot.shape[0], shown.shape[0]), min(snapshot.shape[1], shown.shape[1])
    assert np.abs(snapshot[:height, :width] - shown[:height, :width]).mean() < 4


# Side data without a name


def jpeg_with_exif(rgb: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = io.BytesIO()
    Image.fromarray(rgb).save(stored, "JPEG", quality=95, exif=exif)
    return stored.getvalue()


@pytest.mark.parametrize(("orientation", "degrees"), [(1, 0), (6, -90), (3, 180), (8, 90)])
def test_motion_jpeg_with_exif_is_a_recording_like_any_other(
    orientation: int, degrees: int, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    path, clip = tmp_path / "exif.avi", Clip(frames=12)
    with av.open(str(path), "w") as file:
        video = file.add_stream("mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = clip.width, clip.height, "yuvj420p"
        for index in range(clip.frames):
            packet = av.Packet(jpeg_with_exif(picture(clip, index), orientation))
            packet.stream, packet.pts, packet.dts, packet.time_base = video, index, index, Fraction(1, 25)
            packet.is_keyframe = True
            file.mux(packet)
    with av.open(str(path)) as file:
        first = next(file.decode(video=0))
        with pytest.raises(ValueError, match="not a valid Type"):
            len(first.side_data)  # when PyAV knows the name, this can go, and so can what it is for
    found = annotate(path)
    assert found.frames == 12
    turned = Recording(path).format.orientation
    assert turned == Orientation.of(matrix(*TURNS[degrees]) if degrees else None, Fraction(1))


TURNS = {-90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 90: (0, -1, 1, 0)}


def test_a_picture_of_one_pixel_has_a_mask(annotate: Callable[[Path], ProcessResult], tmp_path: Path) -> None:
    path = tmp_path / "one.mov"
    with av.open(str(path), "w") as file:
        video = file.add_stream("png", rate=5)
        video.width, video.height, video.pix_fmt = 1, 1, "rgb24"
        for _ in range(5):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.full((1, 1, 3), 90, np.uint8), "rgb24")))
        file.mux(video.encode(None))
    found = annotate(path)
    assert [mask.shape for mask in frames_of(found.folder / "masks.mkv", "gray")] == [(1, 1)] * 5
