"""The demo source: usable wherever a recording is, rendered once, with its truth."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from polypstream.errors import SourceError
from polypstream.sources.demo import open_demo, parse_demo, render_demo
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from polypstream.sources.open import stem_of
from tests.conftest import call, frames_of, pts_of, summary_of

SMALL = DemoSettings(seconds=0.4, seed=3, width=160, height=120)


def test_a_demo_address_is_read() -> None:
    assert parse_demo("demo:") == DemoSettings()
    wanted = DemoSettings(seconds=2.5, seed=7, width=640, height=480, rate=Fraction(30000, 1001))
    assert parse_demo("demo:?seconds=2.5&seed=7&size=640x480&rate=30000/1001") == wanted
    assert stem_of("demo:?seed=7") == "demo-seed7"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("demo:?second=1", "there is no value second"),
        ("demo:?seconds=much", "seconds=much cannot be read; write for instance seconds=10"),
        ("demo:?seconds=0", "seconds must be over 0"),
        ("demo:?seconds=nan", "seconds must be over 0"),
        ("demo:?size=12", "size=12 cannot be read"),
        ("demo:?size=9x9", "at least 64x64"),
        ("demo:?size=99999x99999", "at most 7680x4320"),
        ("demo:?rate=1/0", "rate=1/0 cannot be read"),
        ("demo:?rate=0", "rate must be over 0"),
        ("demo:?seed=-1", "seed must be between"),
    ],
)
def test_a_wrong_demo_address_is_explained(uri: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_demo(uri)


@pytest.mark.parametrize("size", [(160, 120), (161, 121)])
def test_the_video_is_the_rendering_and_the_truth_its_polyps(tmp_path: Path, size: tuple[int, int]) -> None:
    settings = DemoSettings(seconds=1.6, seed=1, width=size[0], height=size[1], rate=Fraction(5))
    video, truth = tmp_path / "v.mp4", tmp_path / "t.mkv"
    render_demo(settings, video, truth)
    colon = DemoColon(settings)
    assert pts_of(video) == pts_of(truth) == [Fraction(index, 5) for index in range(len(colon))]
    pictures, numbers = frames_of(video, "rgb24"), frames_of(truth, "gray")
    for index in range(len(colon)):
        picture, truth_picture = colon.render(index)
        assert np.array_equal(numbers[index], truth_picture)
        assert np.abs(pictures[index].astype(int) - picture).mean() < 4
    assert any(each.any() for each in numbers)
    with av.open(str(video)) as file:
        assert file.streams.video[0].codec_context.colorspace == 1


@pytest.mark.slow
def test_a_demo_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = "demo:?seconds=0.4&seed=3&size=160x120"
    first = open_demo(uri)
    assert len(list(first.frames())) == 10
    written = first.path.stat().st_mtime_ns
    assert open_demo(uri).path.stat().st_mtime_ns == written
    assert open_demo(uri.replace("seed=3", "seed=4")).path != first.path
    assert len(list((tmp_path / "polypstream").iterdir())) == 2


@pytest.mark.slow
def test_a_demo_is_processed_like_a_recording(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    call("process", "demo:?seconds=1&seed=2&size=192x144", "--output", tmp_path, "--masks", **cache)
    folder = tmp_path / "demo-seed2"
    assert summary_of(folder)["frames_out"] == 25
    assert len(pts_of(folder / "annotated.mp4")) == 25


@pytest.mark.slow
def test_demo_video_writes_both_files_or_says_why(tmp_path: Path) -> None:
    arguments = ["--seconds", 0.4, "--seed", 3, "--size", "160x120", "--truth", tmp_path / "t" / "truth.mkv"]
    call("demo-video", tmp_path / "v" / "demo.mp4", *arguments)
    assert len(pts_of(tmp_path / "v" / "demo.mp4")) == len(pts_of(tmp_path / "t" / "truth.mkv")) == 10
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["demo.mp4"]
    again = call("demo-video", tmp_path / "v" / "demo.mp4", *arguments, check=False)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    call("demo-video", tmp_path / "v" / "demo.mp4", *arguments, "--overwrite")
    for wrong, code in ((["--size", "big"], 2), (["--size", "9x9"], 1), (["--seconds", "-1"], 1)):
        done = call("demo-video", tmp_path / "w.mp4", *wrong, check=False)
        assert done.returncode == code
        assert not (tmp_path / "w.mp4").exists()
    (tmp_path / "file").write_text("")
    done = call("demo-video", tmp_path / "file" / "v.mp4", "--seconds", 0.2, "--size", "64x64", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
