"""Reading recordings: what counts as one, what is kept, what is said of a damaged one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.format import VideoFormat

from polypstream.errors import SourceError
from polypstream.media.pictures import nearest_kept
from polypstream.sources.recording import Recording
from polypstream.stages.field_of_view import find_field_of_view
from tests.conftest import Clip, make_clip

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("decoded", "kept"),
    [
        ("yuv420p", "yuv420p"),
        ("yuvj422p", "yuvj422p"),
        ("yuv422p10le", "yuv422p10le"),
        ("nv12", "yuv420p"),
        ("yuyv422", "yuv422p"),
        ("yuv411p", "yuv422p"),
        ("yuva420p", "yuv420p"),
        ("p010le", "yuv420p10le"),
        ("yuv422p12le", "yuv422p10le"),
        ("gray", "yuv420p"),
        ("gray10le", "yuv420p10le"),
        ("bgr24", "yuv420p"),
        ("gbrp10le", "yuv420p10le"),
        ("pal8", "yuv420p"),
        ("yuv444p12le", "yuv444p10le"),
    ],
)
def test_pixel_formats_stay_as_near_as_we_can_draw_on(decoded: str, kept: str) -> None:
    assert nearest_kept(VideoFormat(decoded, 64, 64)) == kept


def test_frames_carry_index_and_exact_time(make: Make) -> None:
    recording = Recording(make(rate=Fraction(30000, 1001), frames=7))
    frames = list(recording.frames())
    assert [frame.index for frame in frames] == list(range(7))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(1001 * i, 30000) for i in range(7)]
    assert recording.expected_frames == 7
    assert recording.damage == []


def test_the_format_tells_what_a_sink_must_know(make: Make) -> None:
    tags = {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}
    recording = Recording(
        make(pixel_format="yuv422p10le", colours=tags, rotation=90, sample_aspect_ratio=Fraction(4, 3))
    )
    pictures = recording.format
    assert (pictures.width, pictures.height, pictures.pixel_format) == (320, 240, "yuv422p10le")
    assert {tag: getattr(pictures, tag) for tag in tags} == tags
    assert pictures.sample_aspect_ratio == Fraction(4, 3)
    assert pictures.display_matrix is not None
    assert len(pictures.display_matrix) == 9
    assert pictures.rate == 25


def test_cover_art_is_not_taken_for_the_recording(tmp_path: Path) -> None:
    """A recording with a thumbnail attached, as phones and archives write them."""
    path = tmp_path / "c.mp4"
    make_clip(tmp_path, Clip(name="plain.mp4", frames=9))
    with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(path), "w") as target:
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = cover.disposition.attached_pic
        copy = target.add_stream_from_template(source.streams.video[0], opaque=True)
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        picture.pts = 0
        target.mux(cover.encode(picture))
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    with av.open(str(path)) as file:
        assert any(stream.disposition & stream.disposition.attached_pic for stream in file.streams.video)
    recording = Recording(path)
    assert (recording.format.width, recording.format.height) == (320, 240)
    assert len(list(recording.frames())) == 9


def test_thumbnails_come_from_all_over_the_recording(make: Make, tmp_path: Path) -> None:
    """The first second is black; the view is found all the same."""
    path = tmp_path / "late.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25, options={"g": "10"})
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        for index in range(100):
            rgb = np.zeros((240, 320, 3), np.uint8)
            if index >= 25:
                rgb[20:220, 60:300] = 120
            file.mux(video.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        file.mux(video.encode(None))
    view = find_field_of_view(Recording(path).thumbnails(), 320, 240)
    found = (view.x, view.y, view.x + view.width, view.y + view.height)
    assert np.abs(np.subtract(found, (60, 20, 300, 220))).max() <= 6


def test_a_cut_off_recording_gives_what_is_there_and_says_so(make: Make) -> None:
    path = make(frames=100, container_options={"movflags": "faststart"}, options={"g": "10"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    recording = Recording(path)
    frames = list(recording.frames())
    assert 20 < len(frames) < 90
    assert any("of 4.0 s" in damage for damage in recording.damage)


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p"), ("libx264", "yuv420p")]
)
def test_a_cut_off_avi_says_where_it_ends(make: Make, codec: str, pixel_format: str) -> None:
    """FFmpeg shortens the duration of such a file, so that nothing seems to be missing."""
    path = make(name="cut.avi", codec=codec, pixel_format=pixel_format, frames=100, options={"g": "10", "bf": "0"})
    whole = Recording(path)
    assert len(list(whole.frames())) == 100
    assert whole.damage == []
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    recording = Recording(path)
    assert 20 < len(list(recording.frames())) < 90
    assert any("it ends at" in damage and "of 4.0 s" in damage for damage in recording.damage)


def test_an_avi_with_gaps_is_whole(make: Make) -> None:
    times = [*range(10), *range(20, 30), *range(60, 75)]
    recording = Recording(make(name="gaps.avi", codec="mpeg4", frames=len(times), pts=times))
    assert len(list(recording.frames())) == len(times)
    assert recording.damage == []


def test_flipped_bits_are_counted_and_decoding_goes_on(make: Make) -> None:
    path = make(name="c.mkv", codec="mpeg4", frames=100, options={"g": "10"})
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(4)
    for place in random.integers(len(content) // 4, len(content) * 3 // 4, 12):
        content[place] ^= 1 << int(random.integers(8))
    path.write_bytes(bytes(content))
    recording = Recording(path)
    frames = list(recording.frames())
    assert len(frames) > 60
    assert recording.damage


def test_pictures_without_a_time_among_others_are_given_one_and_it_is_said(make: Make) -> None:
    """AVI stores no times: those of H.264 with B-frames are the decoder's guess, which leaves some out."""
    recording = Recording(make(name="b.avi", frames=30, options={"bf": "2", "b-adapt": "0"}))
    seconds = [frame.seconds for frame in recording.frames()]
    assert len(seconds) == 30
    assert seconds == sorted(set(seconds))
    assert recording.damage == []
    assert any("had no usable time" in note for note in recording.notes)


def test_a_change_of_size_is_scaled_and_said(tmp_path: Path) -> None:
    """Two H.264 streams of different sizes, one behind the other in one transport stream."""
    parts = [make_clip(tmp_path, Clip(name=f"{width}.ts", width=width, frames=10)) for width in (320, 480)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    recording = Recording(path)
    sizes = {(frame.picture.width, frame.picture.height) for frame in recording.frames()}
    assert sizes == {(320, 240)}
    assert any("10 pictures of another size" in note for note in recording.notes)


def test_pictures_too_wide_for_any_output_are_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path, Clip(name="wide.mkv", width=20_000, height=16, frames=2, codec="ffv1"))
    with pytest.raises(SourceError, match="have 20000x16 pixels; 16384 on a side are the most"):
        Recording(path)
