"""Hardware encoders are probed by encoding. Where there is none, FFmpeg's MPEG-4 encoder stands in for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest

from polypstream.core.config import VideoSettings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.errors import OutputError
from polypstream.media import encoders
from polypstream.media.encoders import ENCODERS, Encoder, choose_encoder, why_not
from polypstream.media.video import AnnotatedVideo
from tests.conftest import call, summary_of

HARDWARE = [codec for codec in ENCODERS if codec != "libx264"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Encoder]:
    """A "hardware" encoder in front of x264 that works, and takes 4:2:0 only."""
    encoder = Encoder("mpeg4", {"yuv420p": "yuv420p"}, lambda _, crf: {"qscale": str(crf)}, {}, "nothing")
    monkeypatch.setattr(encoders, "ENCODERS", {"mpeg4": encoder, "libx264": ENCODERS["libx264"]})
    why_not.cache_clear()
    yield encoder
    why_not.cache_clear()


def test_auto_takes_the_first_that_works_and_takes_the_pictures(stand_in: Encoder) -> None:
    assert choose_encoder("auto", "yuv420p") is stand_in
    assert choose_encoder("auto", "yuv422p10le").codec == "libx264"


def test_pictures_that_an_encoder_cannot_take_are_refused(stand_in: Encoder) -> None:
    with pytest.raises(OutputError, match=r"mpeg4: cannot take yuv444p pictures; choose libx264 or auto"):
        choose_encoder("mpeg4", "yuv444p")


def test_what_is_chosen_encodes(stand_in: Encoder, tmp_path: Path) -> None:
    pictures = PictureFormat(64, 48, "yuv420p", Fraction(1, 25), Fraction(25))
    video = AnnotatedVideo(tmp_path / "a.mp4", pictures, None, VideoSettings(codec="auto"))
    for index in range(5):
        picture = av.VideoFrame(64, 48, "yuv420p")
        picture.pts, picture.time_base = index, pictures.time_base
        video.write(Frame(index, picture, index, pictures.time_base))
    video.close()
    assert video.encoder == "mpeg4"
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"
        assert len(list(file.decode(video=0))) == 5


@pytest.mark.parametrize("codec", HARDWARE)
def test_an_encoder_that_does_not_work_is_refused_by_name(
    codec: str, tmp_path: Path, make: Callable[..., Path], red_model: Path
) -> None:
    if why_not(codec) is None:
        pytest.skip(f"{codec} works on this machine")
    wanted = ("--model", red_model, "--output", tmp_path / "out", "--set", f"output.video.codec={codec}")
    done = call("process", make(frames=5), *wanted, check=False)
    assert done.returncode == 1
    assert f"output.video.codec {codec}: does not work on this machine" in done.stderr
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_the_summary_says_which_encoder_it_was(tmp_path: Path, make: Callable[..., Path], red_model: Path) -> None:
    wanted = ("--model", red_model, "--output", tmp_path / "out", "--set", "output.video.codec=auto")
    call("process", make(frames=5), *wanted)
    assert summary_of(tmp_path / "out" / "clip")["encoder"] in ENCODERS
