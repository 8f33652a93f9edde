"""What a frame costs, counted instead of timed: conversions, copies, sessions, frames on their way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.pipeline import QUEUE, Pipeline, Stage
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.setup import make_stages
from polypstream.sources.recording import Recording

WHOLE = FieldOfView(0, 0, 320, 240)
# Crop, quality, segment, smooth, findings and overlay; each, the source and the sink have one frame in hand.
STAGES = 6


class Watched:
    """A source and a sink that note where each frame's planes lie, and how many frames are on their way.

    Attributes:
        moves: for each frame, the stages after which its planes lay elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.source = Recording(path)
        self.pixel_format = self.source.format.pixel_format
        self.came: list[list[int]] = []
        self.shared: list[bool] = []
        self.went: list[list[int]] = []
        self.found: list[bool] = []
        self.moves: dict[int, list[str]] = {}
        self.most = 0

    def frames(self) -> Iterator[Frame]:
        for frame in self.source.frames():
            self.came.append(places(frame))
            self.most = max(self.most, len(self.came) - len(self.went))
            yield frame

    def write(self, frame: Frame) -> None:
        assert frame.picture.format.name == self.pixel_format
        self.found.append(frame.region is not None)
        self.went.append(places(frame))

    def close(self) -> None:
        self.source.close()

    def around(self, name: str, stage: Stage[Frame]) -> Stage[Frame]:
        """The stage, and whether it moves a frame's planes."""

        def noted(frames: list[Frame]) -> list[Frame]:
            before = [places(frame) for frame in frames]
            after = stage(frames)
            for frame, where in zip(after, before, strict=True):
                self.moves.setdefault(frame.index, []).extend([name] * (places(frame) != where))
            return after

        return noted


def places(frame: Frame) -> list[int]:
    return [plane.buffer_ptr for plane in frame.picture.planes]


@pytest.fixture
def watched(make: Callable[..., Path], red_model: Path) -> Watched:
    watched = Watched(make(frames=60))
    stages = list(make_stages(WHOLE, Segmenter(red_model, "cpu"), Settings()))
    assert len(stages) == STAGES
    noted = [(name, watched.around(name, stage), most) for name, stage, most in stages]
    Pipeline([("decode", watched.frames())], noted, [("watch", watched)]).run()
    return watched


def test_a_picture_without_findings_is_the_decoders_own_buffer(watched: Watched) -> None:
    """Neither converted nor copied on its way from the decoder to the encoder."""
    untouched = [came == went for came, went in zip(watched.came, watched.went, strict=True)]
    assert watched.found.count(False) >= 15
    assert all(same for same, found in zip(untouched, watched.found, strict=True) if not found)


def test_a_picture_with_findings_is_copied_once_at_most(watched: Watched) -> None:
    """The decoder may hold the one that came in as a reference; what is drawn on is handed on as it is."""
    moved = [
        sum(a != b for a, b in zip(came, went, strict=True))
        for came, went, found in zip(watched.came, watched.went, watched.found, strict=True)
        if found
    ]
    assert len(moved) >= 30
    assert set(moved) <= {0, 3}  # all of its planes, or none
    assert all(moves in ([], ["overlay"]) for moves in watched.moves.values())


def test_frames_on_their_way_are_bounded(watched: Watched) -> None:
    queues = STAGES + 1  # before each stage and before the sink
    assert watched.most <= queues * QUEUE + STAGES + 2


COUNTING = """
import sys
import onnxruntime
class Counted(onnxruntime.InferenceSession):
    def __init__(self, *arguments, **named):
        open({file!r}, "a").write("one ")
        super().__init__(*arguments, **named)
onnxruntime.InferenceSession = Counted
from polypstream.__main__ import main
main()
"""


def test_one_call_makes_one_session(tmp_path: Path, make: Callable[..., Path], red_model: Path) -> None:
    made = tmp_path / "sessions"
    videos = [str(make(name=f"{name}.mp4", frames=5)) for name in "abc"]
    wanted = ["--output", str(tmp_path / "out"), "--model", str(red_model), "--set", "inference.provider=cpu"]
    script = COUNTING.format(file=str(made))
    done = subprocess.run([sys.executable, "-c", script, "process", *videos, *wanted], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert made.read_text() == "one "
