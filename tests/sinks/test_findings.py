"""findings.json and its snapshots, from frames whose outlines are known."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView, Region
from polypstream.sinks.findings import TRACK_COLUMNS, FindingsFile, read_polyps

WIDTH, HEIGHT = 320, 240
Box = tuple[int, int, int, int]


def frame_of(index: int, *findings: tuple[int, Box, int]) -> Frame:
    """A frame as grey as its number tells, with an outline for each track, box (x, y, width, height) and grey level."""
    grey = np.full((HEIGHT, WIDTH, 3), 40 + 20 * index, np.uint8)
    picture = av.VideoFrame.from_ndarray(grey, "rgb24").reformat(format="yuv420p")
    picture.duration = 2
    frame = Frame(index, picture, 2 * index, Fraction(1, 50))
    frame.view, frame.probability = FieldOfView(0, 0, WIDTH, HEIGHT), np.zeros((HEIGHT, WIDTH), np.uint8)
    frame.region = Region(0, 0, frame.probability, np.zeros((HEIGHT, WIDTH), np.uint8))
    for track, (x, y, width, height), level in findings:
        right, bottom = x + width - 1, y + height - 1
        frame.outlines.append(np.array([(x, y), (right, y), (right, bottom), (x, bottom)], np.int32))
        frame.tracks.append(track)
        frame.peaks.append(level)
        frame.carried.append(False)
        frame.probability[y : y + height, x : x + width] = level
        frame.region.mask[y : y + height, x : x + width] = 255
    return frame


def test_an_outline_says_whether_it_is_carried(tmp_path: Path) -> None:
    seen, carried = frame_of(0, (1, (40, 40, 20, 20), 250)), frame_of(1, (1, (42, 40, 20, 20), 250))
    carried.carried = [True]
    track = written(tmp_path, seen, carried)[1]
    assert [outline["carried"] for outline in track["outlines"]] == [False, True]


def written(folder: Path, *frames: Frame) -> dict[int, dict[str, Any]]:
    """The tracks of the file that these frames give, by their numbers."""
    file = FindingsFile(folder, {"input": "colon.mp4"})
    for frame in frames:
        file.write(frame)
    file.close()
    return {track["track"]: track for track in json.loads((folder / "findings.json").read_text())["tracks"]}


def square(side: int) -> Box:
    return 100, 80, side, side


def test_polyps_csv_has_one_row_for_each_track(tmp_path: Path) -> None:
    frames = [frame_of(0, (2, square(21), 204)), frame_of(1, (2, square(31), 255), (1, square(25), 153))]
    tracks = written(tmp_path, *frames)
    rows = read_polyps(tmp_path)
    assert [row["track"] for row in rows] == ["1", "2"]
    for row in rows:
        assert row.pop("input") == "colon.mp4"
        values = {name: str(value) for name, value in tracks[int(row["track"])].items() if name != "outlines"}
        assert row == values


def test_polyps_csv_of_a_recording_without_polyps_has_its_columns(tmp_path: Path) -> None:
    written(tmp_path, frame_of(0))
    assert (tmp_path / "polyps.csv").read_text() == ",".join(TRACK_COLUMNS) + "\n"


def test_a_track_sums_up_its_frames(tmp_path: Path) -> None:
    sides, levels = [21, 31, 33, 25], [153, 255, 204, 204]
    frames = [
        frame_of(index, (1, square(side), level))
        for index, (side, level) in enumerate(zip(sides, levels, strict=True), 5)
    ]
    (track,) = written(tmp_path, *frames).values()
    assert (track["first_s"], track["last_s"], track["frames"]) == (0.2, 0.32, 4)
    assert track["seconds_in_view"] == 0.16
    assert track["peak_probability"] == 1.0
    assert track["mean_probability"] == 0.8
    assert track["largest_area_fraction"] == round(33 * 33 / (WIDTH * HEIGHT), 6)
    assert [outline["frame"] for outline in track["outlines"]] == [5, 6, 7, 8]
    assert [outline["probability"] for outline in track["outlines"]] == [0.6, 1.0, 0.8, 0.8]
    assert [outline["box"] for outline in track["outlines"]] == [[100, 80, side, side] for side in sides]


def test_the_snapshot_is_of_a_view_that_is_clearly_the_largest(tmp_path: Path) -> None:
    """The second one is more than 1.3 times as large as the first; the third is not as much larger than that."""
    frames = [frame_of(index, (1, square(side), 255)) for index, side in enumerate([21, 31, 33, 25])]
    (track,) = written(tmp_path, *frames).values()
    assert track["snapshot_pts_s"] == 0.04
    snapshot = cv2.imread(str(tmp_path / track["snapshot"]))
    assert snapshot.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(snapshot.astype(int) - 60).max() <= 2  # as grey as the second frame


def test_a_polyp_in_two_pieces_is_one(tmp_path: Path) -> None:
    frame = frame_of(0, (1, (10, 20, 11, 11), 153), (1, (50, 60, 21, 21), 204))
    (track,) = written(tmp_path, frame).values()
    (outline,) = track["outlines"]
    assert outline["box"] == [10, 20, 61, 61]
    assert outline["probability"] == 0.8
    assert outline["polygons"] == [[10, 20, 20, 20, 20, 30, 10, 30], [50, 60, 70, 60, 70, 80, 50, 80]]
    assert track["frames"] == 1
    assert track["largest_area_fraction"] == round((121 + 441) / (WIDTH * HEIGHT), 6)


def test_the_area_is_the_number_of_pixels_of_the_mask() -> None:
    """A ring, in its hole another finding, and in a corner of its bounding box a third one."""
    mask = np.zeros((40, 40), np.uint8)
    cv2.circle(mask, (20, 20), 18, 255, cv2.FILLED)
    cv2.circle(mask, (20, 20), 10, 0, cv2.FILLED)
    ring = cv2.countNonZero(mask)
    mask[18:23, 18:23] = mask[2:4, 2:4] = 255
    region = Region(100, 60, mask, mask)
    found, levels = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(100, 60))
    outlines = [outline[:, 0] for outline, (*_, parent) in zip(found, levels[0], strict=True) if parent < 0]
    assert sorted(map(region.area_of, outlines)) == [4, 25, ring]


def test_tracks_come_in_the_order_of_their_numbers_and_what_has_none_is_none(tmp_path: Path) -> None:
    tracks = written(
        tmp_path, frame_of(0, (2, square(21), 255), (0, (10, 10, 9, 9), 255)), frame_of(1, (1, square(21), 255))
    )
    assert list(tracks) == [1, 2]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["track-1.jpg", "track-2.jpg"]


def test_corners_may_move_by_a_pixel_and_no_more(tmp_path: Path) -> None:
    frame = frame_of(0, (1, square(60), 255))
    frame.outlines = [cv2.ellipse2Poly((160, 120), (60, 40), 0, 0, 360, 1)]
    assert frame.region is not None
    cv2.fillPoly(frame.region.mask, frame.outlines, 255)
    (track,) = written(tmp_path, frame).values()
    (polygon,) = track["outlines"][0]["polygons"]
    assert len(polygon) // 2 < len(frame.outlines[0]) / 4
    corners = np.array(polygon).reshape(-1, 1, 2)
    moved = [-cv2.pointPolygonTest(corners, (float(x), float(y)), True) for x, y in frame.outlines[0]]
    assert max(moved) <= 1
