"""`polypstream score`: figures of runs whose right answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from polypstream.errors import DataError
from polypstream.jobs.score import score
from polypstream.sinks.findings import SCHEMA
from tests.conftest import call

RATE = 25


def write_video(path: Path, pictures: list[np.ndarray], rate: Fraction | int = RATE) -> Path:
    """Lossless grey, so many frames a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "gray"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "gray")))
        file.mux(stream.encode(None))
    return path


def square(value: int, x: int = 20) -> np.ndarray:
    picture = np.zeros((64, 96), np.uint8)
    picture[20:40, x : x + 20] = value
    return picture


NOTHING = np.zeros((64, 96), np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """run(masks, tracks) is a folder of results; lefts are where the squares of tracks begin that do not at 20."""

    def make(
        masks: list[np.ndarray],
        tracks: dict[int, list[int]] | None = None,
        rate: Fraction | int = RATE,
        lefts: dict[int, int] | None = None,
    ) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        write_video(folder / "masks.mkv", masks, rate)

        def outline(track: int) -> dict[str, object]:
            left = (lefts or {}).get(track, 20)
            polygon = [left, 20, left + 19, 20, left + 19, 39, left, 39]
            return {"pts_s": 0.0, "probability": 0.9, "polygons": [polygon]}

        unused = dict.fromkeys(("first_s", "last_s", "seconds_in_view", "peak_probability", "mean_probability"), 0.0)
        unused |= {"largest_area_fraction": 0.0, "snapshot_pts_s": 0.0}
        rows = [
            {"track": track, "frames": len(frames), "snapshot": "none.jpg", **unused}
            | {"outlines": [{"frame": frame, **outline(track)} for frame in frames]}
            for track, frames in (tracks or {}).items()
        ]
        head = {"schema": SCHEMA, "picture_size": [96, 64], "settings": {}}
        (folder / "findings.json").write_text(json.dumps({**head, "tracks": rows}))
        return folder

    return make


def test_a_perfect_run(run: Callable[..., Path], tmp_path: Path) -> None:
    truth = [NOTHING] * 25 + [square(1)] * 50 + [NOTHING] * 25
    folder = run([picture * 255 for picture in truth], {1: list(range(25, 75))})
    figures = score(folder, write_video(tmp_path / "truth.mkv", truth))
    assert figures == {
        "frames": 100,
        "mean_dice": 1.0,
        "mean_iou": 1.0,
        "frame_sensitivity": 1.0,
        "frame_specificity": 1.0,
        "polyps": 1,
        "polyps_found": 1,
        "seconds_to_first_detection": 0.0,
        "false_alarms_per_minute": 0.0,
        "flicker_per_minute": 0.0,
        "id_switches_per_minute": 0.0,
    }


def test_what_goes_wrong_shows(run: Callable[..., Path], tmp_path: Path) -> None:
    """Of four seconds: two polyps of which one is missed, a late detection, a gap, a false alarm, a new number."""
    truth = [NOTHING] * 25 + [square(1)] * 50 + [square(2, 60)] * 25
    masks = [NOTHING] * 5 + [square(255)] * 3 + [NOTHING] * 17
    masks += [NOTHING] * 10 + [square(255)] * 20 + [NOTHING] * 5 + [square(255)] * 15 + [NOTHING] * 25
    folder = run(masks, {1: list(range(35, 55)), 2: list(range(60, 75))})
    figures = score(folder, write_video(tmp_path / "truth.mkv", truth))
    assert figures["mean_dice"] == pytest.approx((22 + 35) / 100)
    assert figures["frame_sensitivity"] == pytest.approx(35 / 75)
    assert figures["frame_specificity"] == pytest.approx(22 / 25)
    assert (figures["polyps"], figures["polyps_found"]) == (2, 1)
    assert figures["seconds_to_first_detection"] == pytest.approx(0.4)
    assert figures["false_alarms_per_minute"] == pytest.approx(15)
    assert figures["flicker_per_minute"] == pytest.approx((2 + 2) * 15)
    assert figures["id_switches_per_minute"] == pytest.approx(15)


def test_what_overlaps_in_part_counts_in_part(run: Callable[..., Path], tmp_path: Path) -> None:
    """Half of each square is in the other; and what is darker than half is no finding."""
    truth, masks = [square(1)] * 3, [square(255, 30), square(128, 30), square(127)]
    figures = score(run(masks), write_video(tmp_path / "truth.mkv", truth))
    assert figures["mean_dice"] == pytest.approx(2 * 0.5 / 3)
    assert figures["mean_iou"] == pytest.approx(2 * (1 / 3) / 3)
    assert figures["frame_sensitivity"] == pytest.approx(2 / 3)


def test_false_alarms_less_than_half_a_second_apart_are_one(run: Callable[..., Path], tmp_path: Path) -> None:
    """Of two seconds: one with a gap of half a second in it, one half a second and a frame after it, to the end."""
    alarm, nothing = [square(255)] * 2, [NOTHING] * 11
    masks = [*alarm, *nothing, *alarm, *[NOTHING] * 13, *[square(255)] * 22]
    assert len(masks) == 2 * RATE
    figures = score(run(masks), write_video(tmp_path / "truth.mkv", [NOTHING] * len(masks)))
    assert figures["false_alarms_per_minute"] == pytest.approx(2 * 30)
    assert figures["flicker_per_minute"] == pytest.approx(6 * 30)  # begins and ends of three, those of the run too
    assert figures["frame_specificity"] == pytest.approx(24 / 50)


def test_a_false_alarm_beside_a_polyp_that_is_found_is_one(run: Callable[..., Path], tmp_path: Path) -> None:
    masks = [np.maximum(square(255), square(255, 60))] * RATE + [square(255)] * RATE
    figures = score(run(masks), write_video(tmp_path / "truth.mkv", [square(1)] * len(masks)))
    assert figures["false_alarms_per_minute"] == pytest.approx(30)
    assert figures["frame_sensitivity"] == 1


def test_each_of_two_polyps_in_view_at_once_must_be_found(run: Callable[..., Path], tmp_path: Path) -> None:
    truth = [np.maximum(square(1), square(2, 60))] * RATE
    figures = score(run([square(255, 60)] * RATE), write_video(tmp_path / "truth.mkv", truth))
    assert (figures["polyps"], figures["polyps_found"]) == (2, 1)


def test_a_polyps_track_is_the_one_that_covers_most_of_it(run: Callable[..., Path], tmp_path: Path) -> None:
    """Track 1 touches its rim in every other frame."""
    count = 2 * RATE
    tracks = {1: list(range(0, count, 2)), 2: list(range(count))}
    folder = run([square(255)] * count, tracks, lefts={1: 35})
    figures = score(folder, write_video(tmp_path / "truth.mkv", [square(1)] * count))
    assert figures["id_switches_per_minute"] == 0


def test_a_track_beside_a_polyp_is_not_its_track(run: Callable[..., Path], tmp_path: Path) -> None:
    """Track 1 is elsewhere whenever track 2 is missing."""
    count = 2 * RATE
    tracks = {1: list(range(0, count, 2)), 2: list(range(1, count, 2))}
    folder = run([square(255)] * count, tracks, lefts={1: 70})
    figures = score(folder, write_video(tmp_path / "truth.mkv", [square(1)] * count))
    assert figures["id_switches_per_minute"] == 0


def test_the_time_to_the_first_detection_is_the_median(run: Callable[..., Path], tmp_path: Path) -> None:
    truth, masks = [], []
    for number, late in ((1, 0), (2, 5), (3, 20)):
        truth += [square(number)] * 30
        masks += [NOTHING] * late + [square(255)] * (30 - late)
    figures = score(run(masks), write_video(tmp_path / "truth.mkv", truth))
    assert figures["polyps_found"] == 3
    assert figures["seconds_to_first_detection"] == pytest.approx(0.2)


@pytest.mark.parametrize(("frames", "polyps"), [(24, 0), (25, 1)])
def test_a_polyp_counts_from_a_second_on(run: Callable[..., Path], tmp_path: Path, frames: int, polyps: int) -> None:
    truth = [square(1)] * frames + [NOTHING] * 50
    figures = score(run([NOTHING] * len(truth)), write_video(tmp_path / "truth.mkv", truth))
    assert figures["polyps"] == polyps


def test_in_a_folder_of_masks_each_stretch_is_a_polyp(run: Callable[..., Path], tmp_path: Path) -> None:
    masks = [*[square(255)] * 30, *[NOTHING] * 5, *[square(255)] * 30]
    (tmp_path / "masks").mkdir()
    for index, mask in enumerate(masks):
        cv2.imwrite(str(tmp_path / "masks" / f"{index:03}.png"), mask)
    figures = score(run([*masks[:30], *[NOTHING] * 35]), tmp_path / "masks")
    assert (figures["polyps"], figures["polyps_found"]) == (2, 1)


def test_a_polyp_in_view_for_a_moment_at_either_end_is_none_that_was_missed(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    truth = [square(1), *[NOTHING] * 40, square(1)]
    figures = score(run([NOTHING] * 42), write_video(tmp_path / "truth.mkv", truth))
    assert (figures["polyps"], figures["polyps_found"]) == (0, 0)


def test_a_folder_of_masks_is_truth_too(run: Callable[..., Path], tmp_path: Path) -> None:
    folder, masks = run([square(255)] * 30), tmp_path / "masks"
    masks.mkdir()
    for index in range(30):
        cv2.imwrite(str(masks / f"{index:03}.png"), square(255))
    done = call("score", folder, "--truth", masks, "--json", tmp_path / "s.json")
    assert "mean dice                   1.0000" in done.stdout
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["polyps"], found["polyps_found"], found["id_switches_per_minute"]) == (1, 1, None)


def test_truth_that_does_not_fit_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run([NOTHING] * 3)
    with pytest.raises(DataError, match="holds fewer frames than"):
        score(folder, write_video(tmp_path / "short.mkv", [NOTHING] * 2))
    with pytest.raises(DataError, match="holds more frames than"):
        score(folder, write_video(tmp_path / "long.mkv", [NOTHING] * 4))
    with pytest.raises(DataError, match=r"its size \(48, 64\) is not that of"):
        score(folder, write_video(tmp_path / "small.mkv", [NOTHING[:, :48].copy()] * 3))
    (folder / "masks.mkv").unlink()
    with pytest.raises(DataError, match="run `polypstream process` with --masks"):
        score(folder, tmp_path / "long.mkv")


def test_truth_that_would_be_misread_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    folder, masks = run([square(255)] * 3), tmp_path / "masks"
    with av.open(str(tmp_path / "lossy.mp4"), "w") as file:
        video = file.add_stream("libx264", rate=25)
        video.width, video.height = NOTHING.shape[::-1]
        file.mux([*video.encode(av.VideoFrame.from_ndarray(square(255), "gray")), *video.encode(None)])
    with pytest.raises(DataError, match="h264 does not keep the polyps' numbers"):
        score(folder, tmp_path / "lossy.mp4")
    masks.mkdir()
    cv2.imwrite(str(masks / "0.png"), square(1))
    with pytest.raises(DataError, match=r"0\.png: is not a mask with the values 0 and 255; its highest value is 1"):
        score(folder, masks)


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("ffv1", "gray"), ("ffv1", "yuv420p"), ("ffv1", "gray16le"), ("png", "gray"), ("png", "rgb24"), ("png", "pal8")],
)
def test_polyps_numbers_are_read_as_they_are_stored(
    codec: str, pixel_format: str, run: Callable[..., Path], tmp_path: Path
) -> None:
    """No conversion of range makes one of two polyps: 3 and 4 are grey levels like any others."""
    numbers = [*range(1, 25), 254, 255]
    truth = tmp_path / ("truth.mov" if codec == "png" else "truth.mkv")
    with av.open(str(truth), "w") as file:
        video = file.add_stream(codec, rate=25)
        video.width, video.height = NOTHING.shape[::-1]
        video.pix_fmt = pixel_format
        for number in (number for number in numbers for _ in range(30)):
            grey = square(number)
            if pixel_format == "pal8":
                palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
                palette[:, 0] = 255  # opaque, and then red, green and blue
                picture = av.VideoFrame.from_ndarray((grey, palette), "pal8")
            else:
                wide = grey.astype(np.uint16) if pixel_format == "gray16le" else grey
                shapes = {"rgb24": np.repeat(grey[..., None], 3, axis=2), "yuv420p": np.vstack([grey, chroma(grey)])}
                picture = av.VideoFrame.from_ndarray(shapes.get(pixel_format, wide), pixel_format)
            file.mux(video.encode(picture))
        file.mux(video.encode(None))
    folder = run([square(255)] * len(numbers) * 30)
    assert score(folder, truth)["polyps"] == len(numbers)


def chroma(grey: np.ndarray) -> np.ndarray:
    """The colour planes of 4:2:0 without colour."""
    return np.full((grey.shape[0] // 2, grey.shape[1]), 128, np.uint8)


@pytest.mark.parametrize("rate", [24, 25, Fraction(30000, 1001), 30, 60])
def test_a_second_is_a_second_at_any_rate(rate: Fraction | int, run: Callable[..., Path], tmp_path: Path) -> None:
    """Though Matroska's times are whole milliseconds."""
    seen, hit = round(rate), ceil(rate / 5)
    for less, expected in ((0, (1, 1)), (1, (1, 0))):
        found = [square(255)] * (hit - less) + [NOTHING] * (3 * seen)
        truth = [square(1)] * seen + [NOTHING] * (len(found) - seen)
        figures = score(run(found, rate=rate), write_video(tmp_path / "truth.mkv", truth, rate))
        assert (figures["polyps"], figures["polyps_found"]) == expected


def test_damaged_findings_are_said(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run([NOTHING] * 3)
    (folder / "findings.json").write_text('{"schema"')
    done = call("score", folder, "--truth", folder / "masks.mkv", check=False)
    assert done.returncode == 1
    assert "findings.json: cannot be read as findings" in done.stderr
    assert "Traceback" not in done.stderr
