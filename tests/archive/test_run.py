"""Archives: which recordings are meant, who does what next, what is in the ledger, and that nothing is lost.

The workers here are real, but work in this process, one task after another: so a test can say when one dies.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from polypstream.archive.inputs import Item, assign_names, find_recordings
from polypstream.archive.ledger import LEDGER, Ledger, Row, State
from polypstream.archive.run import archive, read_ledger
from polypstream.archive.storage import HIDDEN, LOCK
from polypstream.archive.worker import ArchiveJob, Engine, Outcome, Task, Worker, part_name
from polypstream.cli.archive_tables import describe
from polypstream.core.config import load_settings
from polypstream.errors import DataError, OutputError, SourceError
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, with_deidentification, with_model
from polypstream.sources.deidentified import hashed_name
from tests.conftest import audio_packets_of, call, frames_of, make_red_model, pts_of, summary_of

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
SMALL = {"width": 96, "height": 64, "options": {"g": "10"}}


@dataclass
class Here:
    """Workers of this process, each with one task at most.

    Attributes:
        job: as of every pool.
        workers: how many.
        dies: whether the worker dies of this task, before or after it has published its results.
        done: the tasks so far.
    """

    job: ArchiveJob
    workers: int = 2
    dies: Callable[[Task], str | None] = lambda _: None
    engine: Engine | None = None
    done: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._worker = Worker(self.job, 1)
        about = self._worker.start()
        assert about.problem == ""
        assert self.engine in (None, about.engine)
        self.engine = about.engine
        self._given: list[Task] = []

    @property
    def idle(self) -> int:
        return self.workers - len(self._given)

    @property
    def busy(self) -> int:
        return len(self._given)

    def submit(self, task: Task) -> None:
        assert self.idle
        self._given.append(task)

    def wait(self, seconds: float) -> Iterator[tuple[Task, Outcome | None]]:
        task = self._given.pop(0)
        self.done.append(task)
        when = self.dies(task)
        outcome = None if when == "before" else self._worker.work(task)
        yield task, None if when else outcome

    def close(self) -> None:
        pass


@dataclass
class Ran:
    """A run of an archive.

    Attributes:
        rows: of the ledger, as returned.
        told: rows of recordings that were finished.
        tasks: that the workers did.
    """

    rows: dict[str, Row]
    told: list[Row]
    tasks: list[Task]

    def states(self) -> dict[str, State]:
        """By the name of the results' folder."""
        return {row.item.name: row.state for row in self.rows.values()}


@pytest.fixture
def run(tmp_path: Path, red_model: Path) -> Callable[..., Ran]:
    """run(*inputs, seconds=..., dies=..., overwrite=..., settings=[...]) archives into `out` in the test's folder."""

    def run(
        *inputs: Path | str,
        seconds: float = 0.8,
        dies: Callable[[Task], str | None] = lambda _: None,
        overwrite: bool = False,
        settings: Sequence[str] = (),
        workers: int = 2,
        salt: bytes | None = None,
    ) -> Ran:
        chosen = with_model(load_settings(None, list(settings)), red_model)
        job = ArchiveJob(str(tmp_path / "out"), with_deidentification(chosen) if salt else chosen, True, seconds)
        pools: list[Here] = []
        told: list[Row] = []

        def make_workers(engine: Engine | None) -> Here:
            pools.append(Here(job, workers, dies, engine))
            return pools[-1]

        rows = archive([str(each) for each in inputs], job, make_workers, overwrite, told.append, salt=salt)
        return Ran({row.item.address: row for row in rows}, told, pools[0].done if pools else [])

    return run


def compare(results: Path, recording: Path, model: Path, folder: Path) -> None:
    """A recording's results are those of `process`, bit for bit but for the encoder's choices."""
    settings = with_model(load_settings(None, []), model)
    job = Job(str(recording), folder / "process", masks=True, overwrite=True)
    whole = process(job, make_segmenter(settings), settings).folder
    for name in ("frames.csv", "findings.json", "polyps.csv"):
        assert (results / name).read_bytes() == (whole / name).read_bytes()
    for one, other in zip(
        frames_of(results / "masks.mkv", "gray"), frames_of(whole / "masks.mkv", "gray"), strict=True
    ):
        assert (one == other).all()
    assert pts_of(results / "annotated.mp4") == pts_of(whole / "annotated.mp4")
    assert audio_packets_of(results / "annotated.mp4") == audio_packets_of(whole / "annotated.mp4")
    snapshots = [{path.name: path.read_bytes() for path in (each / "snapshots").glob("*")} for each in (results, whole)]
    assert snapshots[0] == snapshots[1]
    assert summary_of(results)["complete"] is True


def left_in(output: Path) -> list[Path]:
    """What is still in the hidden folder, apart from its lock."""
    return [path for path in (output / HIDDEN).rglob("*") if path.is_file() and path.name != LOCK]


def broken_files(folder: Path, good: Path) -> list[Path]:
    """What may lie in an archive: nothing, text, a beginning, noise in the middle."""
    content = good.read_bytes()
    files = {
        "empty.mp4": b"",
        "text.mp4": b"not a video\n" * 100,
        "beginning.mp4": content[: len(content) // 2],
        "noise.ts": os.urandom(20000),
    }
    for name, bytes_ in files.items():
        (folder / name).write_bytes(bytes_)
    return [folder / name for name in files]


def test_an_archive_is_what_process_makes_of_each(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    good = [make(name=f"in/{number}.mp4", frames=20 * number, audio=["aac"], **SMALL) for number in (1, 2, 3, 4)]
    broken = broken_files(tmp_path / "in", good[0])
    ran = run(tmp_path / "in")
    for recording in good:
        assert ran.rows[str(recording)].state is State.DONE
        compare(tmp_path / "out" / recording.stem, recording, red_model, tmp_path)
    assert [ran.rows[str(recording)].parts for recording in good] == [1, 2, 3, 4]
    assert sum(row.frames for row in ran.rows.values()) == 200
    for recording in broken:
        row = ran.rows[str(recording)]
        assert row.state is State.BROKEN
        assert row.reason.startswith(str(recording))
        assert str(tmp_path / "out" / HIDDEN) not in row.reason
    assert len(ran.told) == 8
    assert left_in(tmp_path / "out") == []
    again = run(tmp_path / "in")
    assert again.tasks == []
    assert again.rows == ran.rows


def test_where_recordings_are_left_no_picture_is_seen_twice(
    make: Make, run: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        make(name=f"in/{number}.mp4", frames=100, **SMALL)
    parts = [task for task in run(tmp_path / "in").tasks if task.kind == "part"]
    assert len(parts) == 15
    guessed = [task for task in parts if task.part and not task.continues]
    assert len(guessed) <= 1
    assert all(task.item.name == "2" for task in guessed)


def test_a_single_recording_occupies_all_workers(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path
) -> None:
    recording = make(frames=200, **SMALL)
    ran = run(recording, workers=3)
    assert sum(task.kind == "part" and task.part > 0 and not task.continues for task in ran.tasks) >= 2
    compare(tmp_path / "out" / "clip", recording, red_model, tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["begin", "part", "join"])
def test_what_a_dead_worker_leaves_another_does(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path, kind: str, when: str
) -> None:
    recording = make(frames=60, **SMALL)
    deaths: list[Task] = []

    def dies(task: Task) -> str | None:
        if task.kind != kind or len(deaths) == 2:
            return None
        deaths.append(task)
        return when

    ran = run(recording, dies=dies)
    assert len(deaths) == 2
    assert ran.rows[str(recording)].state is State.DONE
    compare(tmp_path / "out" / "clip", recording, red_model, tmp_path)


@pytest.mark.parametrize("kind", ["begin", "part"])
def test_what_kills_every_worker_is_given_up_and_tried_again_the_next_time(
    make: Make, run: Callable[..., Ran], tmp_path: Path, kind: str
) -> None:
    killer, other = make(name="killer.mp4", frames=60, **SMALL), make(name="other.mp4", frames=60, **SMALL)
    ran = run(killer, other, dies=lambda task: "before" if task.kind == kind and task.item.name == "killer" else None)
    assert ran.states() == {"killer": State.FAILED, "other": State.DONE}
    assert "its worker died 3 times" in ran.rows[str(killer)].reason
    again = run(killer, other)
    assert again.states() == {"killer": State.DONE, "other": State.DONE}
    assert {task.item.name for task in again.tasks} == {"killer"}


class Killed(BaseException):
    """The driver is no more."""


def kill_at(number: int, kind: str = "part") -> Callable[[Task], str | None]:
    """Kills the driver when a task of this kind is done for the so-manieth time."""
    seen: list[Task] = []

    def dies(task: Task) -> None:
        seen.append(task)
        if [each.kind for each in seen].count(kind) == number:
            raise Killed

    return dies


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_killed_driver_goes_on_with_the_parts_that_are_there(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path, number: int
) -> None:
    recording = make(frames=100, **SMALL)
    with pytest.raises(Killed):
        run(recording, dies=kill_at(number))
    assert read_ledger(str(tmp_path / "out"))[0].state is State.BEGUN
    ran = run(recording)
    assert sum(task.kind == "part" for task in ran.tasks) == 5 - (number - 1)
    compare(tmp_path / "out" / "clip", recording, red_model, tmp_path)


def test_parts_of_other_lengths_are_not_taken_for_these(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path
) -> None:
    recording = make(frames=100, **SMALL)
    with pytest.raises(Killed):
        run(recording, dies=kill_at(4))
    assert sum(task.kind == "part" for task in run(recording, seconds=1.6).tasks) == 2
    compare(tmp_path / "out" / "clip", recording, red_model, tmp_path)


def test_damage_is_told_once_and_of_the_whole(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    """Its last part is damaged, so it is processed as a whole: as `process` says it, and with what can be read."""
    recording = make(name="c.mkv", frames=100, codec="mjpeg", pixel_format="yuvj420p", width=96, height=64)
    content = bytearray(recording.read_bytes())
    at = int(len(content) * 0.8)
    content[at : at + 300] = bytes(300)
    recording.write_bytes(content)
    ran = run(recording)
    row = ran.rows[str(recording)]
    assert row.state is State.BROKEN
    assert row.reason.startswith(f"{recording}: damaged: ")
    assert row.reason.endswith(f"could be read; the results are in {tmp_path / 'out' / 'c'}")
    assert [task.kind for task in ran.tasks][-1] == "whole"
    assert 90 <= summary_of(tmp_path / "out" / "c")["frames_out"] <= 100
    assert row.frames == summary_of(tmp_path / "out" / "c")["frames_out"]


def test_only_what_has_changed_is_done_again(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    one, two = make(name="one.mp4", frames=10, **SMALL), make(name="two.mp4", frames=10, **SMALL)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    run(one, two, broken)
    make(name="two.mp4", frames=15, **SMALL)
    three = make(name="three.mp4", frames=10, **SMALL)
    ran = run(one, two, three, broken)
    assert {task.item.name for task in ran.tasks} == {"two", "three"}
    assert ran.rows[str(two)].frames == 15
    assert ran.states()["broken"] is State.BROKEN
    make(name="broken.mp4", frames=10, **SMALL)
    assert run(one, broken).states() == {"one": State.DONE, "broken": State.DONE}


def test_results_in_the_way_are_not_replaced_unasked(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    one, two = make(name="one.mp4", frames=10, **SMALL), make(name="two.mp4", frames=10, **SMALL)
    (tmp_path / "out" / "one").mkdir(parents=True)
    (tmp_path / "out" / "one" / "mine.txt").write_text("keep me")
    (tmp_path / "out" / "one" / "summary.json").write_text("{}")  # of another run
    ran = run(one, two)
    assert ran.states() == {"one": State.BLOCKED, "two": State.DONE}
    assert "exists already; give --overwrite" in ran.rows[str(one)].reason
    assert run(one, two).states() == {"one": State.BLOCKED, "two": State.DONE}
    assert (tmp_path / "out" / "one" / "mine.txt").read_text() == "keep me"
    assert run(one, two, overwrite=True).states() == {"one": State.DONE, "two": State.DONE}
    assert summary_of(tmp_path / "out" / "one")["frames_out"] == 10


def test_results_of_other_settings_are_not_mixed(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    one, two = make(name="one.mp4", frames=60, **SMALL), make(name="two.mp4", frames=10, **SMALL)
    with pytest.raises(Killed):
        run(one, dies=kill_at(3))
    other = ["overlay.opacity=0.5"]
    with pytest.raises(OutputError, match="made with other settings"):
        run(one, two, settings=other)
    ran = run(one, two, settings=other, overwrite=True)
    assert sum(task.kind == "part" for task in ran.tasks) == 3
    assert summary_of(tmp_path / "out" / "one")["settings"]["overlay"]["opacity"] == 0.5  # type: ignore[index]


def test_two_drivers_do_not_share_an_archive(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    recording = make(frames=10, **SMALL)

    def second(_: Task) -> None:
        with pytest.raises(OutputError, match="another `polypstream archive` is running"):
            run(recording)
        assert [row.state for row in read_ledger(str(tmp_path / "out"))] == [State.BEGUN]

    assert run(recording, dies=second).states() == {"clip": State.DONE}


def test_a_ledger_that_is_something_else_is_refused(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER).write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="cannot be used as the ledger"):
        run(make(frames=10, **SMALL))


def test_what_is_no_folder_of_results_is_never_replaced(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    """The results' folder is the recordings' own, by another name, and one is called as another's results would be."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "in")
    one, two = make(name="in/a.mkv", frames=10, **SMALL), make(name="in/a.mp4", frames=10, **SMALL)
    (tmp_path / "in" / ".archive").mkdir()
    (tmp_path / "in" / ".archive" / "mine.txt").write_text("keep me")
    content = {path: path.read_bytes() for path in (one, two)}
    ran = run(one, two, overwrite=True)
    assert ran.states() == {"a": State.DONE, "a.mp4": State.FAILED}
    assert "is not a folder of results, so it is not replaced" in ran.rows[str(two)].reason
    assert content == {path: path.read_bytes() for path in content}
    assert (tmp_path / "in" / ".archive" / "mine.txt").read_text() == "keep me"
    with pytest.raises(SourceError):
        run(tmp_path / "in" / "a")
    with pytest.raises(SourceError):  # all that is there are results, whatever the way to them is called
        run(tmp_path / "in" / "..")


def test_a_recording_that_is_not_there_now_is_tried_again(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("recording\nlate.mp4\n")
    ran = run(tmp_path / "list.csv")
    assert ran.states() == {"late": State.FAILED}
    assert "No such file" in ran.rows[str(tmp_path / "late.mp4")].reason
    make(name="late.mp4", frames=10, **SMALL)
    assert run(tmp_path / "list.csv").states() == {"late": State.DONE}


def test_results_that_were_taken_away_are_made_again(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    recording = make(frames=10, **SMALL)
    run(recording)
    shutil.rmtree(tmp_path / "out" / "clip")
    assert [task.kind for task in run(recording).tasks] == ["begin"]
    assert (tmp_path / "out" / "clip" / "summary.json").is_file()


def test_what_was_never_begun_is_not_in_its_own_way(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    recording = make(frames=10, **SMALL)
    run(recording)
    make(frames=12, **SMALL)

    def nobody(_: Task) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(recording, dies=nobody)
    assert run(recording).rows[str(recording)].frames == 12


def test_another_model_at_the_same_path_is_noticed(make: Make, run: Callable[..., Ran], red_model: Path) -> None:
    recording = make(frames=10, **SMALL)
    original = red_model.read_bytes()
    run(recording)
    try:
        make_red_model(red_model, model_version="2")
        with pytest.raises(OutputError, match="made with another model"):
            run(recording)
    finally:
        red_model.write_bytes(original)


def test_workers_hear_what_those_before_worked_with(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path
) -> None:
    run(make(frames=10, **SMALL))
    ledger = Ledger(tmp_path / "out" / LEDGER)
    facts = ledger.made_with()
    assert facts is not None
    assert facts["engine"]["provider"] == make_segmenter(with_model(load_settings(None, []), red_model)).provider
    ledger.set_made_with(facts | {"engine": {"provider": "cuda", "model": "another"}})
    ledger.close()
    with pytest.raises(AssertionError):  # of Here
        run(make(name="b.mp4", frames=10, **SMALL))


@pytest.mark.parametrize("name", ["begin.npz", "end.npz"])
def test_a_boundary_that_cannot_be_read_is_made_again(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path, name: str
) -> None:
    recording = make(frames=100, **SMALL)
    spoilt: list[Path] = []

    def spoil(task: Task) -> None:
        if task.kind == "part" and task.part == 3 and not spoilt:
            assert task.plan is not None
            boundary = tmp_path / "out" / part_name(task.item, task.plan, 2) / name
            if boundary.exists():
                spoilt.append(boundary)
                boundary.write_bytes(boundary.read_bytes()[:50])
        if task.kind == "part" and task.part == 4:
            raise Killed

    with suppress(Killed):
        run(recording, dies=spoil, workers=1)
    assert spoilt
    assert run(recording).states() == {"clip": State.DONE}
    compare(tmp_path / "out" / "clip", recording, red_model, tmp_path)


def test_three_workers_lost_on_three_parts_are_no_reason_to_give_up(
    make: Make, run: Callable[..., Ran], tmp_path: Path
) -> None:
    dead: set[int] = set()

    def dies(task: Task) -> str | None:
        if task.kind != "part" or task.part in dead:
            return None
        dead.add(task.part)
        return "before"

    ran = run(make(frames=100, **SMALL), dies=dies, workers=4)
    assert len(dead) == 5
    assert ran.states() == {"clip": State.DONE}
    assert len(ran.told) == 1


def test_a_clock_that_leaps_in_one_part_is_told_as_by_process(
    make: Make, run: Callable[..., Ran], red_model: Path, tmp_path: Path
) -> None:
    """Some pictures in the middle have times of the beginning."""
    pieces = [(range(60), "a.ts"), (range(1, 6), "b.ts"), (range(65, 100), "c.ts")]
    made = [make(name=name, frames=len(pts), pts=pts, codec="mpeg2video", **SMALL) for pts, name in pieces]
    leaping = tmp_path / "leaping.ts"
    leaping.write_bytes(b"".join(piece.read_bytes() for piece in made))
    settings = with_model(load_settings(None, []), red_model)
    alone = process(Job(str(leaping), tmp_path / "process"), make_segmenter(settings), settings)
    assert not alone.problem
    assert any("timestamps start again" in note for note in alone.notes)
    row = run(leaping).rows[str(leaping)]
    assert row.state is State.DONE
    assert row.frames == alone.frames
    compare(tmp_path / "out" / "leaping", leaping, red_model, tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_may_be_any_bytes(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"in/k\xf6rper \xc3\xa4.mp4")
    make(frames=10, **SMALL).rename(tmp_path / name)
    ran = run(tmp_path / "in")
    assert list(ran.states().values()) == [State.DONE]
    assert run(tmp_path / "in").tasks == []
    assert [row.item.address for row in read_ledger(str(tmp_path / "out"))] == [str(tmp_path / name)]


def item(address: str, name: str) -> Item:
    return Item(address, name, 1, "1")


def test_no_results_lie_in_or_over_those_of_another() -> None:
    wanted = [
        item("/in/a.mp4", "a"),
        item("/in/a.mov", "a"),
        item("/in/A.MP4", "A"),
        item("/in/a/b.mp4", "a/b"),
        item("/other/a.mp4", "a"),
        item("/in/b.mp4", "b"),
    ]
    names = [each.name for each in assign_names(wanted, {})]
    assert names == ["a.mp4", "a.mov", "A.MP4-2", "a/b", "a.mp4-3", "b"]
    assert len({name.casefold() for name in names}) == len(names)


def test_a_name_that_was_changed_is_not_given_again() -> None:
    wanted = [item("/in/a/b.mp4", "a/b"), item("/in/a_.mp4", "a_")]
    assert [each.name for each in assign_names(wanted, {"/in/a.mp4": "a"})] == ["a_/b", "a_.mp4"]


def test_a_name_once_given_stays() -> None:
    known = {"/in/a.mp4": "a"}
    wanted = [item("/in/a.mov", "a"), item("/in/a.mp4", "a"), item("/in/a/b.mp4", "a/b")]
    assert [each.name for each in assign_names(wanted, known)] == ["a.mov", "a", "a_/b"]


def addresses(folder: Path, *inputs: str) -> dict[str, str]:
    """By the inputs' recordings, relative to the folder, the names of their results."""
    found, *_ = find_recordings([str(folder / text) for text in inputs], str(folder / "in" / "out"))
    return {str(Path(each.address).relative_to(folder)): each.name for each in found}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An archive's files; all that matters is their names."""
    for name in (
        "in/a.mp4",
        "in/sub/b.MKV",
        "in/sub/deep/.c.mp4",
        "in/sub/deep/d.e.ts",
        "in/notes.txt",
        "in/.hidden/f.mp4",
        "in/out/a/annotated.mp4",
        "in/[odd].mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def test_a_folder_means_all_recordings_in_it_but_its_own_results(tree: Path) -> None:
    everything = {
        "in/a.mp4": "a",
        "in/[odd].mp4": "[odd]",
        "in/sub/b.MKV": "sub/b",
        "in/sub/deep/d.e.ts": "sub/deep/d.e",
    }
    assert addresses(tree, "in") == everything
    assert find_recordings([str(tree / "in")], str(tree / "in" / "out"))[1] == 1
    assert addresses(tree, "in", "in/a.mp4") == everything


def test_results_of_process_are_left_out_and_counted(tree: Path) -> None:
    earlier = tree / "in" / "earlier" / "a"
    earlier.mkdir(parents=True)
    (earlier / "summary.json").write_text('{"polypstream": "0.1"}')
    (earlier / "annotated.mp4").write_text("x")
    assert "in/earlier/a/annotated.mp4" not in addresses(tree, "in")
    assert find_recordings([str(tree / "in")], str(tree / "in" / "out"))[1:] == (1, 2)
    assert addresses(tree, "in/earlier/a/annotated.mp4") == {"in/earlier/a/annotated.mp4": "annotated"}
    with pytest.raises(SourceError, match="holds no recording"):
        find_recordings([str(earlier.parent)], "out")


def test_patterns_and_files_are_taken_as_they_are(tree: Path) -> None:
    assert addresses(tree, "in/**/*.ts") == {"in/sub/deep/d.e.ts": "sub/deep/d.e"}
    assert addresses(tree, "in/s*/*") == {"in/sub/b.MKV": "sub/b"}
    assert addresses(tree, "in/[odd].mp4", "in/notes.txt") == {"in/[odd].mp4": "[odd]", "in/notes.txt": "notes"}


def test_a_manifest_names_recordings_and_their_results(tree: Path) -> None:
    with (tree / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file)
        table.writerows(
            [["recording", "name", "patient"], ["in/a.mp4", "study/one", "x"], [str(tree / "in/sub/b.MKV"), "", ""]]
        )
        table.writerows([["in/gone.mp4", "../../etc", ""]])
    assert addresses(tree, "list.csv") == {"in/a.mp4": "study/one", "in/sub/b.MKV": "b", "in/gone.mp4": "_/_/etc"}


@pytest.mark.parametrize(
    ("content", "said"), [("", "no column"), ("file\na.mp4\n", "no column"), ("\xff\xfe", "cannot be read")]
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "list.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        find_recordings([str(tmp_path / "list.csv")], "out")


@pytest.mark.parametrize("text", ["gone", "gone/*.mp4", "in/out"])
def test_an_input_that_means_nothing_is_refused(tree: Path, text: str) -> None:
    with pytest.raises(
        SourceError, match=r"no such file or folder|no file has a name of this pattern|holds no recording"
    ):
        addresses(tree, text)


def test_the_ledger_is_a_table_that_any_tool_reads(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    run(make(frames=10, **SMALL))
    with sqlite3.connect(tmp_path / "out" / LEDGER) as database:
        rows = database.execute("SELECT name, state, frames, parts, tracks FROM recordings").fetchall()
        settings = json.loads(database.execute("SELECT settings FROM runs").fetchone()[0])
    assert rows == [("clip", "done", 10, 1, 1)]
    assert settings["masks"] is True


def test_status_of_nothing_is_an_error(tmp_path: Path) -> None:
    done = call("archive", "status", tmp_path, check=False)
    assert done.returncode == 1
    assert "holds no archive" in done.stderr


# Hashed names

SALT, SECRET = b"0123456789abcdef" * 2, "meier"
LARGE = {"width": 320, "height": 240, "options": {"g": "10"}}


def content_of(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder), path.read_bytes()


def assert_nameless(folder: Path) -> None:
    """No file of an archive, nor its name, says who or where it was."""
    for path, content in content_of(folder):
        assert SECRET not in str(path).lower()
        assert SECRET.encode() not in content.lower(), path


@pytest.fixture
def secret_files(make: Make, tmp_path: Path) -> dict[str, Path]:
    """Recordings of a patient: a short one, one in parts, two of the same name, a broken one, a missing one."""
    for folder in ("ward-meier", "ward-meier/2"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    files = {
        "short": make(name="in/ward-meier/meier-1.mp4", frames=10, **LARGE),
        "parts": make(name="in/ward-meier/meier-2.mp4", frames=60, audio=["aac"], **LARGE),
        "same name": make(name="in/ward-meier/2/meier-1.mp4", frames=12, **LARGE),
        "broken": tmp_path / "in" / "ward-meier" / "meier-3.mp4",
        "missing": tmp_path / "in" / "ward-meier" / "meier-4.mp4",
    }
    files["broken"].write_bytes(b"nothing")
    lines = "".join(f"{path},meier\n" for path in files.values())
    (tmp_path / "list.csv").write_text(f"recording,name\n{lines}")
    return files


@pytest.mark.slow
def test_hashed_names_are_all_that_an_archive_holds(
    secret_files: dict[str, Path], run: Callable[..., Ran], tmp_path: Path, red_model: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "list.csv", salt=SALT, dies=kill_at(2))
    assert_nameless(tmp_path / "out")
    ran = run(tmp_path / "list.csv", salt=SALT)
    assert_nameless(tmp_path / "out")
    rows = read_ledger(str(tmp_path / "out"))
    assert [row.state for row in rows] == [State.DONE] * 3 + [State.BROKEN, State.FAILED]
    # The results are those of `process --hash-names`.
    names = {key: hashed_name(path.name, SALT) for key, path in secret_files.items()}
    assert {row.item.name for row in ran.rows.values()} >= set(names.values())
    settings = with_deidentification(with_model(load_settings(None, []), red_model))
    for key, parts in (("short", 1), ("parts", 3)):
        job = Job(str(secret_files[key]), tmp_path / "process", True, name=names[key])
        whole = process(job, make_segmenter(settings), settings).folder
        results = tmp_path / "out" / names[key]
        for name in ("frames.csv", "findings.json", "polyps.csv"):
            assert (results / name).read_bytes() == (whole / name).read_bytes()
        assert summary_of(results).get("parts", 1) == parts


def test_a_further_run_finds_its_recordings_by_their_hashes(
    secret_files: dict[str, Path], run: Callable[..., Ran], make: Make, tmp_path: Path
) -> None:
    short = secret_files["short"]
    first = run(short, salt=SALT)
    again = run(short, salt=SALT)
    assert again.tasks == []
    assert again.rows == first.rows
    make(name=str(short.relative_to(tmp_path)), frames=20, **LARGE)
    (changed,) = run(short, salt=SALT).rows.values()
    assert (changed.frames, changed.item.name) == (20, hashed_name(short.name, SALT))


def test_names_of_two_kinds_are_never_mixed(
    secret_files: dict[str, Path], run: Callable[..., Ran], make: Make, tmp_path: Path
) -> None:
    short = secret_files["short"]
    run(short, salt=SALT)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="hashed with another salt"):
            run(short, salt=SALT[::-1], overwrite=overwrite)
        with pytest.raises(OutputError, match="its results have hashed names; give --hash-names"):
            run(short, settings=["deidentify.enabled=true"], overwrite=overwrite)
    shutil.rmtree(tmp_path / "out")
    run(short, settings=["deidentify.enabled=true"])
    with pytest.raises(OutputError, match="its results have the names of the recordings; give another --output"):
        run(short, salt=SALT, overwrite=True)


# The command


def test_status_has_a_row_for_each_recording(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    good, broken = make(frames=10, **SMALL), tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    run(good, broken)
    table, js = tmp_path / "table.csv", tmp_path / "table.json"
    lines = call("archive", "status", tmp_path / "out", "--csv", table, "--json", js).stdout.splitlines()
    assert lines[0].split() == ["state", "frames", "polyps", "worker", "seconds", "recording"]
    assert lines[1].split()[:3] == ["done", "10", "1"]
    assert lines[1].endswith(f" {good}")
    assert f"{broken}: not a recording" in lines[2]
    assert sum(str(broken) in line for line in lines) == 1
    assert re.fullmatch(r"all +2 +\d[\d.]* (bytes|kB) +10 +1 +0:00:\d\d", lines[-1])
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recording"], row["results"], row["state"], row["frames"], row["polyps"]) for row in rows] == [
        (str(good), "clip", "done", "10", "1"),
        (str(broken), "broken", "broken", "0", ""),
    ]
    assert [row["polyps"] for row in json.loads(js.read_text())["recordings"]] == [1, None]


def test_a_ledger_without_tracks_is_read_and_goes_on(make: Make, run: Callable[..., Ran], tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    one, two = make(name="one.mp4", frames=10, **SMALL), make(name="two.mp4", frames=10, **SMALL)
    run(one)
    with sqlite3.connect(tmp_path / "out" / LEDGER) as database:
        database.execute("ALTER TABLE recordings DROP COLUMN tracks")
        facts = json.loads(database.execute("SELECT settings FROM runs").fetchone()[0])
        del facts["names"]
        database.execute("UPDATE runs SET settings = ?", [json.dumps(facts)])
    assert [row.tracks for row in read_ledger(str(tmp_path / "out"))] == [None]
    assert call("archive", "status", tmp_path / "out").stdout.splitlines()[1].split()[:3] == ["done", "10", "-"]
    ran = run(one, two)
    assert [task.item.name for task in ran.tasks] == ["two"]
    assert [row.tracks for row in ran.rows.values()] == [None, 1]


@pytest.mark.parametrize("words", [["--help"], []])
def test_help_lists_both_commands(words: list[str]) -> None:
    said = call("archive", *words).stdout
    assert "\n  run " in said
    assert "\n  status " in said


def test_what_is_not_installed_is_said_first(tmp_path: Path) -> None:
    """Before the salt, the settings or the inputs are looked at."""
    program = "import sys; sys.modules.update(ray=None); from polypstream.__main__ import main; main()"
    words = ["archive", "nowhere", "--output", str(tmp_path), "--hash-names", "nothing", "--set", "no.such=1"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("polypstream: this command needs ray, which is not installed; ")
    assert len(done.stderr.splitlines()) == 1


def test_lines_name_recordings_as_process_does() -> None:
    hashed = Item("hashed:1", "abc", 1, "1", "/in/meier.mp4")
    assert describe(Row(hashed, State.DONE, "", 100, 1, 2.0, 1)) == (
        "/in/meier.mp4: 100 frames, 1 polyp, 50.0 frames per second -> abc"
    )
    assert describe(Row(hashed, State.BROKEN, "abc: not a recording")) == "/in/meier.mp4: broken: not a recording"
    stored = Item("hashed:1", "abc", 1, "1")
    assert describe(Row(stored, State.BROKEN, "abc: not a recording")) == "abc: broken: not a recording"
