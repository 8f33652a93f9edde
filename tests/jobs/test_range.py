"""A range of a recording: its frames, times, sound and results are those of the whole recording."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import polypstream as pp
from polypstream.core.config import load_settings
from polypstream.core.time_range import range_of
from polypstream.errors import SettingsError
from polypstream.jobs.annotations import write_annotations
from polypstream.jobs.process import Job, process
from polypstream.jobs.score import score
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.sources.decoding import Decoding
from polypstream.sources.deidentified import BLANKED
from tests.conftest import audio_packets_of, call, frames_of, pts_of, summary_of
from tests.sources.test_deidentified import ROOM, filmed, write_recording
from tests.web.serving import until

Make = Callable[..., Path]
LONG = {"frames": 200, "options": {"g": "25", "bf": "2"}}
# 200 times at irregular steps of 2 to 9 hundredths of a second.
VARIED = np.cumsum([0, *(2 + (7 * index * index) % 8 for index in range(199))]).tolist()
SLOW = pytest.mark.slow
DRAW_NOTHING = ("findings.steady=false", "overlay.style=none", "output.video.crf=0")


def run(recording: Path, model: Path, name: str, *overrides: str, **times: str | float | None) -> Path:
    """Process a recording, or a range of it; its folder of results."""
    settings = with_model(load_settings(None, [*DRAW_NOTHING, *overrides]), model)
    times_ = range_of(times.get("start"), times.get("end"))
    job = Job(str(recording), recording.parent / name, masks=True, times=times_)
    done = process(job, make_segmenter(settings), settings)
    assert done.problem == ""
    return done.folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pts at which recordings are entered."""
    found: list[int] = []
    whole = Decoding.pictures_from_key_frame

    def spied(self: Decoding, pts: int) -> Iterator[av.VideoFrame]:
        found.append(pts)
        return whole(self, pts)

    monkeypatch.setattr(Decoding, "pictures_from_key_frame", spied)
    return found


@pytest.mark.parametrize(
    ("wanted", "seeks"),
    [
        pytest.param({"audio": ["aac", "aac"]}, True, id="b-frames-two-sounds"),
        pytest.param({"name": "c.mkv", "audio": ["libopus", "ac3"]}, True, id="matroska", marks=SLOW),
        pytest.param({"pts": VARIED, "time_base": Fraction(1, 100), "audio": ["aac"]}, True, id="vfr", marks=SLOW),
        pytest.param({"rotation": 90, "audio": ["mp3"]}, True, id="rotation", marks=SLOW),
        pytest.param(
            {"name": "c.ts", "audio": ["mp2"], "container_options": {"output_ts_offset": "2.2"}},
            False,
            id="ts-late",
            marks=SLOW,
        ),
        pytest.param({"name": "c.avi", "codec": "mpeg4", "audio": ["mp3"]}, False, id="avi", marks=SLOW),
        pytest.param({"name": "c.mov", "audio": ["pcm_s16le"]}, True, id="pcm", marks=SLOW),
        pytest.param(
            {"name": "c.mp4", "options": {"g": "1000", "bf": "2"}, "audio": ["aac"]},
            True,
            id="one-keyframe",
            marks=SLOW,
        ),
    ],
)
def test_a_range_is_that_part_of_the_whole(
    make: Make, red_model: Path, entered: list[int], wanted: dict[str, Any], seeks: bool
) -> None:
    recording = make(**(LONG | wanted))
    whole = run(recording, red_model, "whole")
    assert entered == []
    begins = float(rows_of(whole)[0]["pts_s"])
    start, end = begins + 4.01, begins + 6.5
    part = run(recording, red_model, "part", start=start, end=end)
    assert bool(entered) == seeks

    every, some = rows_of(whole), rows_of(part)
    same = [row for row in every if start <= float(row["pts_s"]) < end]
    assert 30 < len(some) == len(same)
    assert [row["frame"] for row in some] == [str(number) for number in range(len(some))]
    assert [row | {"frame": ""} for row in some] == [row | {"frame": ""} for row in same]
    assert any(float(row["max_probability"]) > 0.9 for row in some) or "pts" in wanted

    first = int(same[0]["frame"])
    video = part / "annotated.mp4"
    times = pts_of(whole / "annotated.mp4")[first : first + len(some)]
    assert [float(each) for each in pts_of(video)] == pytest.approx(
        [float(each - times[0]) for each in times], abs=1e-6
    )
    for ours, theirs in zip(
        frames_of(video, "yuv420p"),
        frames_of(whole / "annotated.mp4", "yuv420p")[first : first + len(some)],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)  # crf 0: as decoded
    check_sound(whole / "annotated.mp4", video, times[0], len(wanted["audio"]), "pcm_s16le" in wanted["audio"])
    summary = summary_of(part)
    assert summary["range"] == json.loads((part / "findings.json").read_text())["range"] == [start, end]
    assert (summary["frames_in"], summary["frames_out"], summary["complete"]) == (len(some), len(some), True)
    assert "range" not in summary_of(whole)


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"audio": ["aac"]}, id="b-frames"),
        pytest.param({"name": "c.mkv", "pts": VARIED, "time_base": Fraction(1, 100)}, id="vfr"),
        pytest.param({"name": "c.ts", "container_options": {"output_ts_offset": "2.2"}}, id="ts-late"),
    ],
)
def test_whole_groups_of_pictures_in_a_range_are_copied(make: Make, red_model: Path, wanted: dict[str, Any]) -> None:
    recording = make(**(LONG | {"width": 160, "height": 120} | wanted))
    times, pictures = pts_of(recording), frames_of(recording, "yuv420p")
    start, end = float(times[60]) - 0.001, float(times[140]) - 0.001
    part = run(recording, red_model, "part", "output.video.crf=20", "output.video.unmarked=copy", start=start, end=end)
    counts: Any = summary_of(part)["unmarked"]
    assert (counts["copied_frames"], counts["encoded_frames"]) == (50, 30)
    assert pts_of(part / "annotated.mp4") == [time - times[60] for time in times[60:140]]
    for ours, theirs in zip(frames_of(part / "annotated.mp4", "yuv420p")[15:65], pictures[75:125], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def check_sound(whole: Path, part: Path, since: Fraction, tracks: int, encoded: bool) -> None:
    """Sound is there from the first picture to the last, at the same distance to the pictures as in the whole."""
    every, some = audio_packets_of(whole), audio_packets_of(part)
    assert len(some) == tracks
    length = float(pts_of(part)[-1])
    for original, ours in zip(every, some, strict=True):
        long = max(float(after[0] - before[0]) for before, after in pairwise(original[5:-1]))
        assert (-0.022 if encoded else -1e-3) <= ours[0][0] <= long + 2e-3  # an encoder begins one packet earlier
        assert length - 2 * long <= ours[-1][0] <= length + 0.1
        times, contents = np.array([float(time - since) for time, _ in original]), [content for _, content in original]
        for time, content in [] if encoded else ours:
            place = int(np.abs(times - float(time)).argmin())
            assert times[place] == pytest.approx(float(time), abs=2e-3)
            assert content == contents[place]


@pytest.mark.slow
def test_what_is_not_given_is_the_beginning_or_the_end(make: Make, red_model: Path) -> None:
    recording = make(**LONG)
    whole = rows_of(run(recording, red_model, "whole"))
    assert rows_of(run(recording, red_model, "head", end="0:01")) == whole[:25]
    tail = rows_of(run(recording, red_model, "tail", start="0:07.4"))
    assert [row["pts_s"] for row in tail] == [row["pts_s"] for row in whole[185:]]
    beyond = rows_of(run(recording, red_model, "beyond", start=7.4, end="1:00:00"))
    assert beyond == tail


def test_times_of_frames_csv_can_be_copied(make: Make, red_model: Path) -> None:
    """0.066667 is behind the frame at 2/30 s, which frames.csv calls so."""
    recording = make(rate=Fraction(30), time_base=Fraction(1, 30), frames=30)
    rows = rows_of(run(recording, red_model, "whole"))
    part = rows_of(run(recording, red_model, "part", start=rows[2]["pts_s"], end=rows[5]["pts_s"]))
    assert [row["pts_s"] for row in part] == [row["pts_s"] for row in rows[2:5]]


@pytest.mark.slow
def test_a_recording_that_cannot_be_entered_is_decoded_from_its_start(
    make: Make, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = make(audio=["aac"], **LONG)
    good = rows_of(run(recording, red_model, "good", start=4, end=5))
    monkeypatch.setattr(Decoding, "pictures_from_key_frame", lambda *_: iter(()))
    assert rows_of(run(recording, red_model, "other", start=4, end=5)) == good


@pytest.mark.slow
def test_frames_far_before_the_range_are_not_decoded(
    make: Make, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, decoded = make(frames=500, options={"g": "25"}), []
    fixed = Decoding._fix_tags
    monkeypatch.setattr(Decoding, "_fix_tags", lambda self, picture: (decoded.append(1), fixed(self, picture)))
    run(recording, red_model, "part", start=18, end=18.4)
    assert len(decoded) < 150


@pytest.mark.slow
def test_masks_dicom_and_score_find_the_range_again(make: Make, red_model: Path, tmp_path: Path) -> None:
    recording = make(**LONG)
    whole = run(recording, red_model, "whole")
    part = run(recording, red_model, "part", start=3, end=4)
    figures = score(part, whole / "masks.mkv")
    assert (figures["frames"], figures["mean_dice"]) == (25, 1.0)
    folder, (annotated,) = write_annotations([str(recording)], [part], "coco", tmp_path / "coco")
    assert (annotated.pictures, annotated.findings) == (25, 25)
    coco = next(folder.rglob("*.json"))
    assert coco.is_file()
    image = sorted(folder.rglob("*.jpg"))[0]
    with av.open(str(image)) as file:
        ours = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    theirs = frames_of(whole / "annotated.mp4", "rgb24")[75].astype(int)
    assert np.abs(ours - theirs).mean() < 3
    done = call("dicom", recording, "--results", part)
    assert "track-1-capture.dcm" in done.stdout or (part / "dicom/track-1-capture.dcm").is_file()


def test_the_api(make: Make, red_model: Path, tmp_path: Path) -> None:
    recording, detector = make(**LONG), pp.Detector(red_model, provider="cpu")
    result = pp.process(recording, tmp_path / "out", detector=detector, start=4, end=4.4)
    assert result.frames["pts_s"].tolist() == pytest.approx([4 + each / 25 for each in range(10)])
    with detector.track(recording, start=4, end=4.4) as frames:
        assert [(each.index, round(each.seconds, 2)) for each in frames] == [
            (number, round(4 + number / 25, 2)) for number in range(10)
        ]
    with pytest.raises(SettingsError, match=r"to 0:00:04.0: holds no time; the end must be later than the start"):
        pp.process(recording, tmp_path / "out", detector=detector, start=4.4, end=4)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="is no time"):
            detector.track(recording, start=wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "5", "--to", "0:05"], "from 0:00:05.0 to 0:00:05.0: holds no time; the end must be later"),
        (["--to", "0"], "to 0:00:00.0: holds no time; the end must be later than the start"),
        (["--from", "1:00:00"], "has no frame from 1:00:00.0; its first frame is at 0:00:00.0, and it lasts 0:00:01.2"),
        (["--from", "1.201", "--to", "1.202"], "has no frame from 0:00:01.2 to 0:00:01.2"),
        (["--from", "soon"], "from soon: is no time; write seconds such as 90.5, or 12:30, or 1:02:03.5"),
        (["--from=-1"], "from -1: is no time"),
        (["--to", "1:75"], "to 1:75: is no time"),
    ],
)
def test_a_wrong_range_is_one_line(
    make: Make, red_model: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    done = call("process", make(), "-o", tmp_path / "out", "--model", red_model, *options, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_range_of_images_is_refused(red_model: Path, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    done = call("process", tmp_path / "a.png", "--from", 1, "--model", red_model, check=False)
    assert done.returncode == 1
    assert "--from and --to are for recordings, and not for images" in done.stderr


@pytest.mark.slow
def test_a_deidentified_range_blanks_what_the_whole_run_blanks(red_model: Path, tmp_path: Path) -> None:
    """The room is filmed until just before the range, so its first frames are blanked."""
    pictures = [filmed()] * 75 + [filmed(ROOM, disc=False)] * 50 + [filmed()] * 75
    recording = write_recording(tmp_path / "room.mp4", pictures)
    options = "deidentify.enabled=true"
    whole = run(recording, red_model, "whole", options)
    part = run(recording, red_model, "part", options, start=5.2, end=7)
    every, some = (
        [bool(each.max() <= 16) for each in frames_of(folder / "annotated.mp4", "gray")] for folder in (whole, part)
    )
    assert some == every[130:175]
    assert 15 < sum(some) < 25
    assert f"{BLANKED}{sum(some)}" in summary_of(part)["notes"]  # type: ignore[operator]


@pytest.mark.slow
def test_the_command_and_a_manifest(make: Make, red_model: Path, tmp_path: Path) -> None:
    recording = make(**LONG)
    call("process", recording, "-o", tmp_path / "out", "--model", red_model, "--from", "0:04", "--to", "0:04.4")
    rows = rows_of(tmp_path / "out/clip")
    assert len(rows) == 10
    manifest = tmp_path / "list.csv"
    manifest.write_text("recording,from,to,name\nclip.mp4,0:04,4.4,a\nclip.mp4,5,,b\nclip.mp4,,,c\n")
    options = ("-o", tmp_path / "archive", "--model", red_model, "--workers", 1, "--segment-seconds", 1)
    call("archive", manifest, *options)
    assert rows_of(tmp_path / "archive/a") == rows
    assert [len(rows_of(tmp_path / "archive" / name)) for name in "abc"] == [10, 75, 200]
    assert summary_of(tmp_path / "archive/a")["range"] == [4.0, 4.4]
    assert summary_of(tmp_path / "archive/a")["input"] == str(recording)
    assert "200 of" not in call("archive", manifest, *options).stderr  # nothing is left to do
    status = call("archive", "status", tmp_path / "archive").stdout
    assert "#t=4,4.4" in status
    manifest.write_text("recording,from\nclip.mp4,5:99\n")
    done = call("archive", manifest, *options, check=False)
    assert "line 2: from 5:99: is no time" in done.stderr


@pytest.mark.browser
def test_the_report_of_a_range_goes_to_the_right_place(make: Make, red_model: Path, browse: Callable[[], Any]) -> None:
    folder = run(make(**LONG), red_model, "part", start=4, end=6)
    driver = browse()
    driver.get(f"file://{folder / 'report.html'}")
    video = driver.find_element("css selector", "video")
    until(lambda: driver.execute_script("return arguments[0].readyState > 0", video))
    timeline = driver.find_element("css selector", ".timeline")
    assert float(timeline.get_attribute("data-start")) == 4.0
    driver.find_element("css selector", ".bar").click()
    assert driver.execute_script("return arguments[0].currentTime", video) == pytest.approx(0.65, abs=0.1)
    until(lambda: driver.execute_script("return !document.querySelector('.head').hidden"))
    left = driver.execute_script("return parseFloat(document.querySelector('.head').style.left)")
    assert left == pytest.approx(33, abs=6)
