"""What brings a recording's process down costs that recording alone, and is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import Pipe, active_children
from pathlib import Path

import psutil
import pytest

from polypstream.core.config import Settings, load_settings
from polypstream.core.watchdog import Watchdog
from polypstream.errors import ModelError, OutputError, PolypstreamError, SourceError
from polypstream.jobs import isolated
from polypstream.jobs.isolated import IsolatedProcessor
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.media.video import AnnotatedVideo, check_frames
from polypstream.sources.recording import Recording
from polypstream.stages.overlay import Overlay
from tests.conftest import command, pts_of, summary_of

pytestmark = pytest.mark.slow

Make = Callable[..., Path]


@pytest.fixture
def settings(red_model: Path) -> Settings:
    return with_model(load_settings(None, ["inference.provider=cpu", "output.video.preset=ultrafast"]), red_model)


@pytest.fixture
def processor(settings: Settings) -> Iterator[IsolatedProcessor]:
    with closing(IsolatedProcessor(settings)) as made:
        made.start()
        yield made


def started(*recordings: Path, output: Path, model: Path, preset: str = "placebo") -> subprocess.Popen[str]:
    """The command at work, slowly."""
    wanted = ("--output", output, "--model", model, "--set", f"output.video.preset={preset}")
    words = [*command(), "process", *map(str, (*recordings, *wanted))]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def has_rows(table: Path, count: int) -> bool:
    return table.exists() and len(table.read_text().splitlines()) > count


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_a_recording_that_kills_its_process_is_one_line_and_the_others_go_on(
    make: Make, red_model: Path, tmp_path: Path
) -> None:
    killer = make(name="killer.mp4", frames=600, options={"preset": "ultrafast"})
    others = [make(name="before.mp4", frames=5), make(name="after.mp4", frames=5)]
    running = started(others[0], killer, others[1], output=tmp_path / "out", model=red_model)
    until(lambda: has_rows(tmp_path / "out" / "killer" / "frames.csv", 20))
    (child,) = psutil.Process(running.pid).children()
    child.send_signal(signal.SIGSEGV)
    said, complained = running.communicate(timeout=60)
    assert running.returncode == 1
    assert complained == f"polypstream: {killer}: the process that read it died (SIGSEGV)\n"
    assert [line.split(": ")[1] for line in said.splitlines()[:2]] == list(map(str, others))
    assert said.splitlines()[-1] == "3 inputs: 2 done, 1 failed; polyps in 2"
    for name in ("before", "after"):
        assert len(pts_of(tmp_path / "out" / name / "annotated.mp4")) == 5


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_a_killed_command_leaves_no_process_behind(make: Make, red_model: Path, tmp_path: Path) -> None:
    recording = make(frames=600, options={"preset": "ultrafast"})
    running = started(recording, output=tmp_path / "out", model=red_model)
    until(lambda: has_rows(tmp_path / "out" / "clip" / "frames.csv", 20))
    (child,) = psutil.Process(running.pid).children()
    running.kill()
    running.communicate()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_a_second_interruption_does_not_wait(make: Make, red_model: Path, tmp_path: Path) -> None:
    recording = make(frames=600, options={"preset": "ultrafast"})
    running = started(recording, output=tmp_path / "out", model=red_model)
    until(lambda: has_rows(tmp_path / "out" / "clip" / "frames.csv", 20))
    (child,) = psutil.Process(running.pid).children()
    child.suspend()  # as if it were stuck in a library
    running.send_signal(signal.SIGINT)
    time.sleep(1)
    assert running.poll() is None, "the first one lets the files be finished"
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130
    running.communicate()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


LARGE_MESSAGES = """
from polypstream.jobs import isolated
class Large(isolated._Progress):
    def __init__(self, done, expected, padding=""):
        super().__init__(done, expected)
    def __reduce__(self):
        return Large, (self.done, self.expected, "x" * 30_000)
isolated._Progress = Large
from polypstream.__main__ import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_a_command_that_is_stopped_does_not_stop_its_recording(make: Make, red_model: Path, tmp_path: Path) -> None:
    """Ctrl-Z; what the child has to say of its progress, nobody reads then."""
    wanted = ["--output", str(tmp_path / "out"), "--model", str(red_model), "--set", "output.video.preset=placebo"]
    recording = make(frames=150, options={"preset": "ultrafast"})
    running = subprocess.Popen([sys.executable, "-c", LARGE_MESSAGES, "process", str(recording), *wanted])
    until(lambda: has_rows(tmp_path / "out" / "clip" / "frames.csv", 5))
    running.send_signal(signal.SIGSTOP)
    until(lambda: (tmp_path / "out" / "clip" / "report.html").exists())
    running.kill()
    running.wait()


STUCK = """
import sys, time
from polypstream.core import watchdog
from polypstream.jobs import isolated
from polypstream.stages.overlay import Overlay
watchdog.STALL_TIMEOUT_S = isolated.STALL_TIMEOUT_S = 3.0
draw = Overlay.__call__
def stuck(self, frames):
    if frames[0].index == 7 and frames[0].picture.width == 320:
        time.sleep(600)
    return draw(self, frames)
Overlay.__call__ = stuck
from polypstream.__main__ import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_recording_in_which_nothing_moves_ends_by_itself(make: Make, red_model: Path, tmp_path: Path) -> None:
    stands, goes = make(name="stands.mp4", frames=30), make(name="goes.mp4", frames=30, width=160, height=120)
    wanted = ["--output", str(tmp_path / "out"), "--model", str(red_model)]
    words = [sys.executable, "-c", STUCK, "process", str(stands), str(goes), *wanted]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == f"polypstream: {stands}: nothing moved in it for 3 seconds, so it was ended\n"
    assert len(pts_of(tmp_path / "out" / "goes" / "annotated.mp4")) == 30


def test_a_slow_recording_is_not_taken_for_one_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[float] = []
    monkeypatch.setattr("polypstream.core.watchdog.faulthandler.dump_traceback_later", lambda *_, **__: armed.append(1))
    monkeypatch.setattr("polypstream.core.watchdog.faulthandler.cancel_dump_traceback_later", lambda: armed.append(-1))
    monkeypatch.setattr("polypstream.core.watchdog.REARM_INTERVAL_S", 0.0)
    with Watchdog() as watchdog:
        for moved in (1, 1, 2, 2, 2, 3):
            watchdog.note(moved)
            watchdog.note(7, "something that stands")
    assert armed == [1, 1, 1, 1, 1, -1], "once at the beginning, and for each step"


def test_a_model_that_cannot_be_used_is_said_before_anything_is_done(settings: Settings, tmp_path: Path) -> None:
    wrong = with_model(settings, tmp_path / "no.onnx")
    with closing(IsolatedProcessor(wrong)) as processor, pytest.raises(ModelError, match="no such model file"):
        processor.start()


def test_what_was_killed_before_it_began_does_not_begin(settings: Settings) -> None:
    """A server ends, or a user cancels a recording, in the moment before its process starts."""
    processor = IsolatedProcessor(settings)
    processor.kill()
    with pytest.raises(PolypstreamError, match="stopped before it began"):
        processor.start()
    processor.close()


def test_what_goes_wrong_with_a_recording_is_told_in_its_own_kind(
    processor: IsolatedProcessor, make: Make, tmp_path: Path
) -> None:
    missing = processor.process(Job(str(tmp_path / "missing.mp4"), tmp_path / "out"))
    assert isinstance(missing.problem, SourceError)
    assert missing.run is None
    twice = Job(str(make(frames=5)), tmp_path / "out")
    assert processor.process(twice).run is not None
    assert isinstance(processor.process(twice).problem, OutputError)


def test_an_error_that_nobody_thought_of_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not end the child: its exit code would be that of the watchdog."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(isolated, "process", fail)
    _, end = Pipe()
    job = Job("colon.mp4", tmp_path, title="broken")
    outcome = isolated._run_job(job, None, make_segmenter(settings), settings, end)
    assert isinstance(outcome, isolated.Outcome)
    assert str(outcome.problem) == "broken: a fault of polypstream, please report it (ZeroDivisionError: by nought)"


def test_progress_comes_from_the_other_process(processor: IsolatedProcessor, make: Make, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    outcome = processor.process(Job(str(make(frames=200)), tmp_path / "out"), lambda done, of: told.append((done, of)))
    assert outcome.run is not None
    assert outcome.run.frames == 200
    assert {of for _, of in told} == {200}
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.slow
def test_ended_from_another_thread_it_says_so(processor: IsolatedProcessor, make: Make, tmp_path: Path) -> None:
    recording = make(frames=3000, options={"preset": "ultrafast"})
    threading.Timer(1.0, processor.kill).start()
    assert "(SIGKILL, perhaps because the memory was full)" in str(
        processor.process(Job(str(recording), tmp_path)).problem
    )


def test_one_that_has_died_before_its_turn_is_said_to_have(settings: Settings, make: Make, tmp_path: Path) -> None:
    job, before = Job(str(make(frames=5)), tmp_path), set(active_children())
    with closing(IsolatedProcessor(settings)) as processor:
        processor.start()
        (child,) = set(active_children()) - before
        child.kill()
        child.join()
        assert "the process that read it died" in str(processor.process(job).problem)
        processor.start()
        assert processor.process(job).run is not None


WHERE = {
    "source": (Recording, "_shape_of"),
    "stage": (Overlay, "__call__"),
    "sink": (AnnotatedVideo, "write"),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("error", [ValueError("31 is not a valid Type"), OSError(95, "Operation not supported")])
def test_whatever_a_library_raises_is_an_error_about_the_recording(
    where: str, error: Exception, make: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = make(frames=10)

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(*WHERE[where], broken)
    with pytest.raises((SourceError, OutputError)) as raised:
        process(Job(str(recording), tmp_path / "out"), make_segmenter(settings), settings)
    assert "clip" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not summary_of(tmp_path / "out" / "clip")["complete"]


@pytest.mark.parametrize("file", ["annotated.mp4", "masks.mkv"])
def test_what_cannot_be_read_back_is_an_error(
    file: str, make: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that a muxer took and never wrote."""
    recording, check = make(frames=10), check_frames

    def one_more(path: Path, frames: int, *more: object) -> None:
        check(path, frames + (path.name == file), *more)  # type: ignore[arg-type]

    monkeypatch.setattr("polypstream.jobs.process.check_frames", one_more)
    with pytest.raises(OutputError, match=f"{file}: 10 of the 11 frames that were written can be read"):
        process(Job(str(recording), tmp_path / "out", masks=True), make_segmenter(settings), settings)
    summary = summary_of(tmp_path / "out" / "clip")
    assert not summary["complete"]
    assert "10 of the 11 frames" in str(summary["problem"])


def test_a_picture_that_the_muxer_loses_is_found(
    make: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, count = AnnotatedVideo._release, iter(range(100))

    def lossy(self: AnnotatedVideo) -> None:
        if next(count) == 5:
            self._previous_packet = None
        release(self)

    monkeypatch.setattr(AnnotatedVideo, "_release", lossy)
    with pytest.raises(OutputError, match="9 of the 10 frames"):
        process(Job(str(make(frames=10)), tmp_path / "out"), make_segmenter(settings), settings)
