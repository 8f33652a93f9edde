"""A recording in parts: whatever the recording, the parts give what the whole gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from polypstream.archive.boundary import (
    Boundary,
    digest_of,
    load_boundary,
    renumbering_at,
    restore_state,
    save_boundary,
    state_of,
)
from polypstream.archive.join import fits, join_parts
from polypstream.archive.parts import BEGIN, END, CannotJoin, Plan, plan_parts, process_part
from polypstream.core.config import Settings, load_settings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, make_stages, with_model
from polypstream.media.pictures import planes_of
from polypstream.sources.deidentified import BLANKED
from polypstream.sources.open import open_source
from polypstream.sources.recording import Recording
from polypstream.stages.smoothing import SmootherState
from polypstream.stages.tracking import Track, TrackerState
from tests.conftest import audio_packets_of, frames_of, pts_of, summary_of

Make = Callable[..., Path]
GOP = {"g": "10"}
SLOW = pytest.mark.slow


class Twice:
    """A recording processed as a whole and in parts.

    Attributes:
        whole, joined: folders of the results.
        guesses: of each part after the first, whether it fitted when it saw nothing but its overlap.
    """

    def __init__(self, recording: Path, model: Path, seconds: float, *overrides: str, goes_on: bool = False) -> None:
        self.recording, self.settings = recording, with_model(load_settings(None, list(overrides)), model)
        self.segmenter = make_segmenter(self.settings)
        folder = recording.parent / f"twice-{recording.name}"
        job = Job(str(recording), folder / "whole", masks=True)
        self.whole = process(job, self.segmenter, self.settings).folder
        self.plan = plan_of(recording, seconds, self.settings)
        self.guesses: list[bool] = []
        self.parts: list[Path] = []
        for number in range(len(self.plan.parts)):
            self.parts.append(folder / str(number))
            self.run(number, self.parts[number - 1] if goes_on and number else None)
            if number:
                self.guesses.append(fits(self.parts[number - 1], self.parts[number]))
                if not self.guesses[-1]:
                    self.run(number, self.parts[number - 1])
                    assert fits(self.parts[number - 1], self.parts[number])
        self.joined = folder / "joined"
        self.joined.mkdir()
        self.joining = join_parts(recording, self.plan, self.parts, self.joined, self.settings, masks=True)

    def run(self, number: int, before: Path | None) -> None:
        """Process one part."""
        shutil.rmtree(self.parts[number], ignore_errors=True)
        self.parts[number].mkdir(parents=True)
        job = Job(str(self.recording), self.parts[number], masks=True)
        run = process_part(job, self.plan, self.plan.parts[number], before, self.segmenter, self.settings)
        assert run.damage == []

    def compare(self, closed: bool = True) -> None:
        """Everything but the encoder's choices is the same, bit for bit."""
        for name in ("frames.csv", "findings.json", "polyps.csv"):
            assert (self.joined / name).read_bytes() == (self.whole / name).read_bytes()
        assert contents_of(self.joined / "snapshots") == contents_of(self.whole / "snapshots")
        for one, other in zip(masks_of(self.joined), masks_of(self.whole), strict=True):
            np.testing.assert_array_equal(one, other)
        for name in ("masks.mkv", "annotated.mp4"):
            assert pts_of(self.joined / name) == pts_of(self.whole / name)
        assert audio_packets_of(self.joined / "annotated.mp4") == audio_packets_of(self.whole / "annotated.mp4")
        assert streams_of(self.joined / "annotated.mp4") == streams_of(self.whole / "annotated.mp4")
        ours, theirs = summary_of(self.joined), summary_of(self.whole)
        assert ours["parts"] == len(self.parts)
        # A group that is open or is cut by a part is encoded there. The whole recording may copy it.
        encoded = set() if closed else {"unmarked"}
        different = {key for key in ours if ours[key] != theirs.get(key)}
        assert different <= {"parts", "wall_seconds", "frames_per_second", "seconds_per_stage", *encoded}
        assert (self.joined / "report.html").is_file()


def plan_of(recording: Path, seconds: float, settings: Settings | None = None) -> Plan:
    plan = plan_or_none(recording, seconds, settings)
    assert plan is not None
    return plan


def plan_or_none(recording: Path, seconds: float, settings: Settings | None = None) -> Plan | None:
    source = open_source(str(recording))
    try:
        return plan_parts(source, settings or Settings(), seconds)
    finally:
        source.close()


def masks_of(folder: Path) -> list[np.ndarray]:
    return frames_of(folder / "masks.mkv", "gray")


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def streams_of(path: Path) -> list[tuple[object, ...]]:
    """What a player is told of each stream."""
    with av.open(str(path)) as file:
        told: list[tuple[object, ...]] = [(file.duration, sorted(file.metadata.items()))]
        for stream in file.streams:
            context = stream.codec_context
            told.append((stream.type, context.name, stream.time_base, stream.start_time, stream.duration))
            if stream.type == "video":
                picture = next(file.decode(stream))
                rotation = picture.rotation
                told[-1] += (context.width, context.height, context.pix_fmt, stream.frames, rotation)
                told[-1] += (context.sample_aspect_ratio, int(picture.colorspace), int(picture.color_range))
        return told


VARIED = [
    0,
    4,
    8,
    13,
    14,
    20,
    27,
    30,
    33,
    38,
    41,
    44,
    50,
    52,
    57,
    60,
    66,
    69,
    75,
    77,
    83,
    90,
    93,
    97,
    99,
    120,
    121,
    130,
]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"options": GOP}, id="plain"),
        pytest.param({"options": GOP, "audio": ["aac", "mp3"]}, id="sound"),
        pytest.param({"options": GOP, "rate": Fraction(30000, 1001), "rotation": 90}, id="ntsc-rotated", marks=SLOW),
        pytest.param({"name": "c.mkv", "options": GOP, "audio": ["flac"]}, id="matroska", marks=SLOW),
        pytest.param({"name": "c.ts", "options": GOP, "audio": ["mp2"]}, id="transport-stream", marks=SLOW),
        pytest.param({"name": "c.avi", "codec": "mjpeg", "pixel_format": "yuvj420p"}, id="motion-jpeg", marks=SLOW),
        pytest.param({"options": {"g": "10", "x264-params": "open-gop=1:bframes=3"}}, id="open-gop"),
        pytest.param(
            {"frames": 28, "pts": VARIED, "time_base": Fraction(1, 25), "options": {"g": "4"}},
            id="varied",
            marks=SLOW,
        ),
        pytest.param(
            {"pts": range(5000, 9000, 100), "time_base": Fraction(1, 1000), "options": GOP},
            id="starts-late",
            marks=SLOW,
        ),
        pytest.param({"name": "c.mkv", "width": 161, "height": 121, "codec": "ffv1"}, id="odd-size", marks=SLOW),
    ],
)
@pytest.mark.parametrize("goes_on", [pytest.param(False, marks=pytest.mark.slow), True])
def test_parts_give_what_the_whole_gives(make: Make, red_model: Path, wanted: dict[str, object], goes_on: bool) -> None:
    twice = Twice(make(**{"frames": 60, "width": 160, "height": 120} | wanted), red_model, 0.8, goes_on=goes_on)
    assert len(twice.parts) > 1
    twice.compare(closed="open-gop" not in str(wanted))


def test_groups_that_the_whole_copies_are_copied_in_parts(make: Make, red_model: Path) -> None:
    twice = Twice(make(frames=60, width=160, height=120, options=GOP, audio=["aac"]), red_model, 0.8)
    counts: Any = summary_of(twice.joined)["unmarked"]
    assert counts == summary_of(twice.whole)["unmarked"]
    assert (counts["copied_gops"] > 0, counts["encoded_gops"] > 0) == (True, True)
    recorded, *annotated = (
        frames_of(path, "yuv420p")
        for path in (twice.recording, twice.whole / "annotated.mp4", twice.joined / "annotated.mp4")
    )
    for frames in annotated:
        for number in range(counts["encoded_frames"], 60):  # nothing is marked in the last groups
            np.testing.assert_array_equal(recorded[number], frames[number])


@pytest.mark.slow
def test_so_they_do_without_steadying(make: Make, red_model: Path) -> None:
    Twice(make(frames=75, options=GOP, audio=["aac"]), red_model, 1, "findings.steady=false").compare()


@pytest.mark.slow
def test_frames_blanked_in_all_parts_are_counted_once(make: Make, red_model: Path) -> None:
    """They lie in two parts: grey is not what the inside of a body looks like."""
    twice = Twice(make(frames=75, options=GOP), red_model, 0.6, "deidentify.enabled=true")
    twice.compare()
    notes = summary_of(twice.joined)["notes"]
    assert [note for note in notes if BLANKED in note] == [f"{BLANKED}25"]  # the last third  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_track_goes_through_the_boundaries_and_keeps_its_number(make: Make, red_model: Path) -> None:
    """The disc is there from the first frame to two thirds."""
    twice = Twice(make(frames=250, width=160, height=120, options={"g": "25"}), red_model, 2)
    twice.compare()
    assert twice.guesses == [True] * 4
    tracks = json.loads((twice.joined / "findings.json").read_text())["tracks"]
    assert [(track["track"], track["frames"]) for track in tracks][:1] == [(1, tracks[0]["frames"])]
    assert tracks[0]["frames"] > 160


def flicker(folder: Path) -> Path:
    """A red disc that begins to flicker before a boundary, so that what is before the overlap decides what is shown."""
    path = folder / "flicker.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25, options={"g": "25"})
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        rows, columns = np.ogrid[:120, :160]
        for index in range(200):
            rgb = np.full((120, 160, 3), (90, 90, 90), np.uint8)
            faint = 20 <= index < 140
            rgb[(columns - 80) ** 2 + (rows - 60) ** 2 <= 300] = (175, 85, 85) if faint else (200, 30, 30)
            file.mux(video.encode(av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuv420p")))
        file.mux(video.encode(None))
    return path


@pytest.mark.slow
def test_a_part_that_guessed_wrong_is_found_out(tmp_path: Path, red_model: Path) -> None:
    twice = Twice(flicker(tmp_path), red_model, 4, "findings.peak=0.8")
    assert twice.guesses == [False]
    twice.compare()


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [
        pytest.param({"frames": 30}, 60, id="short"),
        pytest.param({"frames": 60, "options": GOP}, 0, id="not-wanted"),
        pytest.param({"frames": 60, "options": {"g": "1000", "sc_threshold": "0"}}, 0.5, id="one-key-frame"),
        pytest.param({"name": "c.h264", "frames": 60, "options": GOP}, 0.5, id="without-times"),
    ],
)
def test_what_cannot_be_cut_stays_whole(make: Make, wanted: dict[str, object], seconds: float) -> None:
    assert plan_or_none(make(width=160, height=120, **wanted), seconds) is None


def test_cuts_are_key_frames_and_the_parts_alike(make: Make) -> None:
    recording = make(frames=100, options=GOP)
    plan = plan_of(recording, 1)
    with av.open(str(recording)) as file:
        keys = {packet.pts for packet in file.demux(video=0) if packet.is_keyframe}
        second = 1 / file.streams.video[0].time_base
    assert set(plan.cuts) <= keys
    assert len(plan.parts) == 4
    lengths = np.diff([0, *plan.cuts, 4 * second])
    assert lengths.min() >= 0.6 * second
    assert lengths.max() <= 1.4 * second


@pytest.mark.slow
def test_parts_that_do_not_go_on_are_not_joined(make: Make, red_model: Path, tmp_path: Path) -> None:
    twice = Twice(make(frames=60, options=GOP), red_model, 1)
    shutil.copyfile(twice.parts[0] / END, twice.parts[1] / BEGIN)  # fits, and is not its own
    shutil.copyfile(twice.parts[1] / "annotated.mp4", tmp_path / "kept.mp4")
    boundary = load_boundary(twice.parts[1] / BEGIN)
    changed = Boundary(boundary.pts, boundary.digest + 1, boundary.smoother, boundary.tracker)
    save_boundary(changed, twice.parts[1] / BEGIN)
    assert not fits(twice.parts[0], twice.parts[1])
    (tmp_path / "again").mkdir()
    with pytest.raises(CannotJoin, match="does not continue"):
        join_parts(twice.recording, twice.plan, twice.parts, tmp_path / "again", twice.settings, masks=True)


@pytest.mark.slow
def test_parts_encoded_differently_are_not_joined(make: Make, red_model: Path, tmp_path: Path) -> None:
    twice = Twice(make(frames=60, options=GOP), red_model, 1)
    (tmp_path / "other").mkdir()
    settings = load_settings(None, ["output.video.preset=ultrafast"])
    plan, parts = twice.plan, list(twice.parts)
    job = Job(str(twice.recording), tmp_path / "other", masks=True)
    process_part(job, plan, plan.parts[1], parts[0], twice.segmenter, settings)
    parts[1] = tmp_path / "other"
    (tmp_path / "again").mkdir()
    with pytest.raises(CannotJoin, match="encoded differently"):
        join_parts(twice.recording, plan, parts, tmp_path / "again", twice.settings, masks=True)


@pytest.mark.slow
def test_a_part_whose_pictures_are_others_is_refused(make: Make, red_model: Path, tmp_path: Path) -> None:
    """The results before are those of another recording with the same cuts."""
    twice = Twice(make(frames=60, options=GOP), red_model, 1)
    other = make(name="other.mp4", frames=60, options=GOP, width=322)
    with pytest.raises(CannotJoin, match="not those of the whole recording"):
        job = Job(str(other), tmp_path, masks=True)
        process_part(job, twice.plan, twice.plan.parts[1], twice.parts[0], twice.segmenter, twice.settings)


def boundary(numbers: list[int], count: int, **changes: object) -> Boundary:
    """After a picture at 10 s that shows one track for each number, 0 for one that was never shown."""
    facts: dict[str, object] = {
        "last_confident": 9.9,
        "last_sharp": 9.9,
        "evidence": 0.3,
        "confirmed": True,
        "last": 10.0,
        "seen": 9.9,
        "smooth": 1.0,
    }
    facts |= changes
    tracks = [
        Track(
            facts["last"],  # type: ignore[arg-type]
            number,
            facts["last_confident"],  # type: ignore[arg-type]
            facts["evidence"],  # type: ignore[arg-type]
            facts["confirmed"],  # type: ignore[arg-type]
            last_sharp=facts["last_sharp"],  # type: ignore[arg-type]
        )
        for number in numbers
    ]
    places = np.arange(16, dtype=np.uint8).reshape(4, 4) % (len(numbers) + 1)
    smooth = np.full((4, 4), facts["smooth"], np.float32)
    steady = SmootherState(10.0, FieldOfView(0, 0, 4, 4), np.zeros((64, 64), np.uint8), smooth, facts["seen"])  # type: ignore[arg-type]
    return Boundary(1000, 7, steady, TrackerState(tracks, places, count, 10.0))


def test_numbers_are_those_of_the_whole_recording() -> None:
    rename = renumbering_at(boundary([5, 0, 9], 11), boundary([2, 0, 1], 3))
    assert rename is not None
    assert [rename(number) for number in (0, 1, 2, 3, 4, 5)] == [0, 9, 5, 0, 12, 13]
    later = renumbering_at(boundary([4, 1], 5), boundary([1, 2], 2))
    assert later is not None
    both = rename.after(later)
    assert [both(number) for number in (1, 2, 3)] == [12, 9, 14]


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({}, True),
        ({"last_confident": 3.0}, False),
        ({"last_sharp": 3.0}, False),
        ({"evidence": 0.2}, False),
        ({"confirmed": False}, False),
        ({"last": 9.9}, False),
        ({"seen": 9.8}, False),
        ({"smooth": 1.0 + 1 / 64}, False),
    ],
)
def test_whatever_decides_what_follows_is_compared(changes: dict[str, object], alike: bool) -> None:
    assert (renumbering_at(boundary([1], 1), boundary([1], 1, **changes)) is not None) == alike


def with_track(known: Boundary, **changes: object) -> Boundary:
    return replace(known, tracker=replace(known.tracker, **changes))


def with_smoother(known: Boundary, **changes: object) -> Boundary:
    assert known.smoother is not None
    return replace(known, smoother=replace(known.smoother, **changes))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda known: replace(known, pts=1001), id="pts"),
        pytest.param(lambda known: replace(known, digest=8), id="pixels"),
        pytest.param(lambda known: replace(known, smoother=None), id="no smoother"),
        pytest.param(lambda known: with_smoother(known, before=9.0), id="time"),
        pytest.param(lambda known: with_smoother(known, view=FieldOfView(0, 0, 4, 2)), id="view"),
        pytest.param(lambda known: with_smoother(known, grey=np.ones((64, 64), np.uint8)), id="picture"),
        pytest.param(lambda known: with_track(known, before=9.0), id="time of the tracker"),
        pytest.param(lambda known: with_track(known, places=np.ones((4, 4), np.uint8)), id="places"),
        pytest.param(
            lambda known: with_track(known, tracks=[replace(known.tracker.tracks[0], position_unknown=True)]),
            id="position unknown",
        ),
        pytest.param(lambda known: with_track(known, tracks=[]), id="no tracks"),
    ],
)
def test_any_other_difference_keeps_two_parts_from_going_on_alike(change: Callable[[Boundary], Boundary]) -> None:
    assert renumbering_at(boundary([1], 1), boundary([1], 1)) is not None
    assert renumbering_at(boundary([1], 1), change(boundary([1], 1))) is None
    assert renumbering_at(change(boundary([1], 1)), boundary([1], 1)) is None


def test_a_digest_tells_any_pixel_of_any_plane() -> None:
    def digest(changed: int | None) -> int:
        picture = av.VideoFrame(66, 48, "yuv420p")
        for number, plane in enumerate(planes_of(picture)):
            plane[:] = 20 + number
            plane[-1, -1] += number == changed
        return digest_of(Frame(0, picture, 0, Fraction(1, 25)))

    assert digest(None) == digest(None)
    assert len({digest(changed) for changed in (None, 0, 1, 2)}) == 4


def test_stages_go_on_from_a_copy_of_what_others_remember(red_model: Path) -> None:
    settings = with_model(load_settings(None, ["inference.provider=cpu"]), red_model)
    view, segmenter = FieldOfView(0, 0, 128, 128), make_segmenter(settings)
    before, after = (make_stages(view, segmenter, settings) for _ in range(2))
    known = boundary([5], 11)
    restore_state(before, known)
    smooth, track = state_of(before)
    assert smooth is not None
    restore_state(after, Boundary(1000, 7, smooth, track))
    for stages in (before, after):
        assert renumbering_at(known, Boundary(1000, 7, *state_of(stages))) is not None
    assert after.smooth is not None
    after.smooth.state.smooth += 1
    after.findings.tracker.state.tracks[0].evidence = 0.0
    assert renumbering_at(known, Boundary(1000, 7, *state_of(before))) is not None
    assert renumbering_at(known, boundary([5], 11)) is not None
    assert renumbering_at(known, Boundary(1000, 7, *state_of(after))) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"last_confident": 3.0}, {"last_confident": 8.9}),
        ({"last_sharp": 3.0}, {"last_sharp": 8.9}),
        ({"seen": 3.0}, {"seen": 7.9}),
    ],
)
def test_what_no_longer_matters_is_not(one: dict[str, object], other: dict[str, object]) -> None:
    assert renumbering_at(boundary([1], 1, **one), boundary([1], 1, **other)) is not None


def test_a_track_that_was_shown_before_is_not_one_that_never_was() -> None:
    assert renumbering_at(boundary([1], 1), boundary([0], 0)) is None
    assert renumbering_at(boundary([1, 2], 2), boundary([1], 1)) is None


def test_a_boundary_survives_its_file(tmp_path: Path) -> None:
    for original in (boundary([5, 0], 11, last_confident=float("-inf")), Boundary(1, 2, None, TrackerState())):
        save_boundary(original, tmp_path / "boundary.npz")
        copy = load_boundary(tmp_path / "boundary.npz")
        assert renumbering_at(original, copy) is not None
        assert copy.tracker.tracks == original.tracker.tracks
        assert (copy.tracker.count, copy.pts, copy.digest) == (original.tracker.count, original.pts, original.digest)


def test_frames_may_be_read_from_any_time_to_any_other(make: Make) -> None:
    recording = make(frames=60, options=GOP)

    def pts(since: int | None, until: int | None) -> list[int]:
        source = Recording(recording)
        try:
            return [frame.pts for frame in source.frames(since, until)]
        finally:
            source.close()

    everything = pts(None, None)
    for since, until in ((everything[7], None), (everything[13] - 1, everything[40]), (None, everything[3])):
        wanted = [each for each in everything if (since or 0) <= each < (until or everything[-1] + 1)]
        assert pts(since, until) == wanted
