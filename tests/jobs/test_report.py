"""report.html: what it says, in a real browser, and at a million frames."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polypstream.core.formatting import clock
from polypstream.errors import DataError
from polypstream.jobs.report import Place, Timeline, inlined, read_table, shown_spans, write_report
from polypstream.sinks.tables import HEADER
from tests.conftest import Clip, call, make_clip
from tests.web.serving import click_at, until

NAME = "<b>&colon.mp4"


@pytest.fixture(scope="module")
def processed(red_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a clip with one finding, whose name is as odd as names get."""
    folder = tmp_path_factory.mktemp("processed")
    call("process", make_clip(folder, Clip(name=NAME, frames=75)), "--output", folder / "out", "--model", red_model)
    return next((folder / "out").iterdir())


@pytest.fixture
def run(processed: Path, tmp_path: Path) -> Path:
    """A copy of these results, to be changed."""
    return Path(shutil.copytree(processed, tmp_path / "out" / processed.name))


def test_a_run_ends_with_its_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "Research use only, not a medical device." in page
    assert "&lt;b&gt;&amp;colon.mp4" in page
    assert "<b>&colon" not in page
    assert page.count('class="card"') == 1
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.browser
def test_the_report_in_a_browser(run: Path, browse: Callable[[], Any]) -> None:
    driver = browse()
    driver.get(f"file://{run / 'report.html'}")
    video = driver.find_element("css selector", "video")
    until(lambda: driver.execute_script("return arguments[0].readyState > 0", video))
    card, bar = (driver.find_element("css selector", f".{name}") for name in ("card", "bar"))
    assert card.get_attribute("class") == "card"
    bar.click()
    assert card.get_attribute("class") == "card chosen"
    assert driver.execute_script("return arguments[0].currentTime", video) == pytest.approx(0.98, abs=0.05)
    click_at(driver, ".timeline", 0.9)
    assert driver.execute_script("return arguments[0].currentTime", video) == pytest.approx(0.9 * 2.96, abs=0.05)
    assert driver.execute_script("return document.querySelector('.card img').naturalWidth") == 480
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.browser
def test_without_its_video_the_report_leads_to_the_cards(run: Path, browse: Callable[[], Any]) -> None:
    (run / "annotated.mp4").unlink()
    driver = browse()
    driver.get(f"file://{run / 'report.html'}")
    until(lambda: not driver.find_element("css selector", "video").is_displayed())
    driver.find_element("css selector", ".bar").click()
    assert driver.current_url.endswith("#track-1")
    assert driver.find_element("css selector", ".card").get_attribute("class") == "card chosen"


@pytest.mark.browser
def test_the_labels_of_the_timeline_can_be_read(run: Path, browse: Callable[[], Any]) -> None:
    driver = browse()
    (run / "annotated.mp4").unlink()  # not to load it thirty times
    for seconds in (0.8, 10, 47, 299, 3599, 57_000):
        rows = [f"{index},{index * seconds / 99:.6f},0,0.0,0.5,,0,0,0,1,0\n" for index in range(100)]
        (run / "frames.csv").write_text(",".join(HEADER) + "\n" + "".join(rows))
        write_report(run)
        for width in (320, 390, 700, 1025, 1400):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(f"file://{run / 'report.html'}")
            labels = [box for box in driver.execute_script(BOXES) if box["width"]]
            assert len(labels) >= min(2, seconds)
            assert all(box["height"] >= 11 for box in labels)
            assert all(left["right"] + 2 < right["left"] for left, right in pairwise(labels)), (seconds, width)
            assert labels[0]["left"] >= 0
            assert labels[-1]["right"] <= width
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width


BOXES = "return [...document.querySelectorAll('.timeline g text')].map((each) => each.getBoundingClientRect().toJSON())"


@pytest.mark.slow
def test_bars_are_where_a_polyp_is_shown(run: Path) -> None:
    """A track with a gap has two bars. A gap that is narrower than a column of the timeline has none."""
    found = json.loads((run / "findings.json").read_text())
    (track,) = found["tracks"]
    track["outlines"] = [each for each in track["outlines"] if each["frame"] not in range(20, 30)]
    (run / "findings.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    bars = re.findall(r'class="bar".*?data-first="(.*?)" data-last="(.*?)"', page)
    assert bars == [("0.0", "0.76"), ("1.2", "2.0")]
    long = Timeline(0.0, 3 * 3600, np.zeros(1200), [])
    assert shown_spans(track, long) == [(0.0, 2.0)]


@pytest.mark.slow
def test_what_reaches_the_line_and_is_not_shown_is_marked(run: Path) -> None:
    rows = read_rows(run / "frames.csv")
    for row in rows[60:63]:
        row["max_probability"] = "0.9500"
    rows[70]["max_probability"] = "0.4000"  # below the peak of 0.5
    write_rows(run / "frames.csv", rows)
    page = write_report(run).read_text()
    (missed,) = re.findall(r'class="missed" data-first="(.*?)" data-last="(.*?)"><title>(.*?)</title>', page)
    assert missed == ("2.4", "2.48", "0:00:02.4 to 0:00:02.5, not shown: too short or too small")
    assert page.count("not shown: too short or too small") == 2  # and in the legend


@pytest.mark.parametrize("count", [100, 5000])
def test_a_gap_in_the_recording_is_a_gap_in_the_timeline(tmp_path: Path, count: int) -> None:
    """Frames at 25 per second, with uneven distances, and none for a third of the time."""
    table, gap = tmp_path / "frames.csv", count / 25 / 2
    jitter = np.random.default_rng(1).uniform(-0.015, 0.015, count)
    times = np.arange(count) / 25 + jitter + gap * (np.arange(count) >= count // 2)
    rows = [f"{index},{seconds:.6f},0,0.0,0.8,1,0,0,0,1,0" for index, seconds in enumerate(times)]
    table.write_text("\n".join([",".join(HEADER), *rows]) + "\n")
    timeline, _ = read_table(table, 0.9)
    missing = np.flatnonzero(np.isnan(timeline.highest)) / (len(timeline.highest) - 1)
    assert missing.min() == pytest.approx(1 / 3, abs=0.02)
    assert missing.max() == pytest.approx(2 / 3, abs=0.02)
    assert len(missing) == pytest.approx(len(timeline.highest) / 3, abs=3)
    assert timeline.area.count("M") == timeline.area.count("Z") == 2
    ((left, width),) = timeline.gaps
    assert (left, width) == (pytest.approx(100 / 3, abs=2), pytest.approx(100 / 3, abs=3))
    assert "nan" not in timeline.area
    assert " 1.00 " not in timeline.area  # nowhere at probability 0
    track = {"outlines": [{"frame": index, "pts_s": seconds} for index, seconds in enumerate(times)]}
    assert len(shown_spans(track, timeline)) == 2


def test_the_report_says_the_number_of_polyps_first_and_numbers_the_bars(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.partition("<dl>")[0].rstrip().endswith('<p class="found">1 polyp</p>')
    assert re.findall(r'class="number".*?>(\d+)</text>', page) == ["1"]
    found = json.loads((run / "findings.json").read_text())
    (run / "findings.json").write_text(json.dumps(found | {"tracks": []}))
    assert '<p class="found">No polyp was found.</p>' in write_report(run).read_text()


def test_bars_of_different_polyps_and_their_numbers_do_not_overlap() -> None:
    """There are as many rows as are needed, up to six. Then bars share a row, and numbers are left out."""
    timeline = Timeline(0.0, 100, np.zeros(1200), [])

    def places(*spans: tuple[float, float]) -> list[Place]:
        return timeline.places([{"spans": [span]} for span in spans])

    apart = places((0, 10), (1, 2), (5, 20), (12, 13), (30, 31))
    assert [each.row for each in apart] == [0, 1, 2, 0, 0]
    assert all(each.number and each.on_phone for each in apart)
    crowded = places(*((10 + number / 2, 11 + number / 2) for number in range(12)))
    assert [each.row for each in crowded] == [0, 1, 2, 3, 4, 5] * 2
    assert [each.number for each in crowded] == [True] * 12
    assert [each.on_phone for each in crowded] == [True] * 6 + [False] * 6
    assert not any(each.number for each in places(*((10 + number / 100, 11) for number in range(12)))[6:])
    assert [each.row for each in places((90, 91), (97, 98))] == [0, 1]  # the second number ends where its bar ends
    again = timeline.places([{"spans": [(0, 1), (50, 51)]}, {"spans": [(20, 21)]}])
    assert [each.row for each in again] == [0, 1]  # it is joined to its later bar
    assert again[0].right == pytest.approx(51, abs=0.1)


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def write_rows(table: Path, rows: list[dict[str, str]]) -> None:
    with table.open("w") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def test_the_words_of_the_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert (
        "findings with a probability of at least 0.5 at one pixel or more, and with an area of at least 0.1 % of"
        in page
    )
    assert "<h2>Polyps</h2>" in page
    assert "Polyp 1</a></h3>" in page
    assert "Track" not in page.partition("<script>")[0]
    assert "<dt>probability</dt><dd>highest 1.00, mean 1.00</dd>" in page
    assert "<dt>first and last seen</dt><dd>0:00:00.0 to 0:00:02.0</dd>" in page


def test_a_polyp_of_one_frame_is_not_in_view_for_no_time(run: Path) -> None:
    found = json.loads((run / "findings.json").read_text())
    found["tracks"][0] |= {"first_s": 0.6, "last_s": 0.6, "seconds_in_view": 0.04, "frames": 1}
    (run / "findings.json").write_text(json.dumps(found))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "<dt>first and last seen</dt><dd>0:00:00.6</dd>" in page
    assert "<dt>in view</dt><dd>0.04 s, 1 frame</dd>" in page


def test_with_the_truth_it_says_how_right_the_run_was(run: Path) -> None:
    write_report(run, {"mean_dice": 0.75, "polyps": 3, "seconds_to_first_detection": None})
    page = (run / "report.html").read_text()
    for row in ("<dt>mean dice</dt><dd>0.750</dd>", "<dt>polyps</dt><dd>3</dd>", "detection</dt><dd>-</dd>"):
        assert row in page


@pytest.mark.slow
def test_a_million_frames_fit_into_ten_megabytes(run: Path) -> None:
    """An archive's longest day: a million frames and a thousand tracks, each with a snapshot."""
    found = json.loads((run / "findings.json").read_text())
    (track,) = found["tracks"]
    tracks = [track | {"track": number, "first_s": 30 * number, "last_s": 30 * number + 9} for number in range(1, 1001)]
    (run / "findings.json").write_text(json.dumps(found | {"tracks": tracks}))
    cells = "0,0.0,{:.4f},,0,{},0,1,0\n".format
    rows = "".join(f"{index},{index / 30:.6f},{cells(index % 97 / 97, index % 2)}" for index in range(10**6))
    (run / "frames.csv").write_text(",".join(HEADER) + "\n" + rows)
    page = write_report(run).read_text()
    assert len(page) < 10_000_000
    assert page.count('class="card"') == 1000
    assert "50.0 %" in page


@pytest.mark.parametrize(("width", "height", "inside"), [(960, 480, (240, 480)), (2, 16_000, (1920, 1))])
def test_a_picture_inside_the_report_is_small_whatever_its_shape_is(
    tmp_path: Path, width: int, height: int, inside: tuple[int, int]
) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((height, width, 3), np.uint8))
    (url,) = inlined(tmp_path, ["a.jpg"])
    content = np.frombuffer(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")), np.uint8)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR).shape[:2] == inside


def test_the_timeline_keeps_every_peak(tmp_path: Path) -> None:
    table = tmp_path / "frames.csv"
    rows = [f"{index},{index / 25:.6f},0,0.0,{float(index == 7777):.4f},,1,0,0,1,0" for index in range(20_000)]
    table.write_text("\n".join([",".join(HEADER), *rows]) + "\n")
    timeline, qualities = read_table(table, 0.9)
    assert np.flatnonzero(timeline.highest).tolist() == [round(7777 / 19_999 * 1199)]
    assert qualities == {"blurred": 1.0, "overexposed": 0.0, "outside": 0.0}
    assert [label for _, label, _ in timeline.ticks()][:3] == ["0:00:00", "0:02:00", "0:04:00"]


def test_frames_at_one_time_are_one_column(tmp_path: Path) -> None:
    """A damaged header states two thousand million frames per second."""
    table = tmp_path / "frames.csv"
    rows = [f"{index},2.000000,1,0.1,{index / 10:.1f},1,0,0,0,1,0" for index in range(10)]
    table.write_text("\n".join([",".join(HEADER), *rows]) + "\n")
    assert read_table(table, 0.9)[0].highest.tolist() == [0.9]


@pytest.mark.slow
def test_what_is_no_run_is_said(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DataError, match="holds no finished run"):
        write_report(tmp_path)
    table = (run / "frames.csv").read_text()
    (run / "frames.csv").write_text(table + "99,3.9\n")  # as a full disk ends it
    with pytest.raises(DataError, match=r"frames\.csv: cannot be read as a table of frames"):
        write_report(run)
    (run / "frames.csv").write_text(table)
    shutil.copy(run / "summary.json", run / "findings.json")
    with pytest.raises(DataError, match=r"findings\.json: cannot be read"):
        write_report(run)


def test_clock() -> None:
    assert clock(0) == "0:00:00.0"
    assert clock(59.96) == "0:01:00.0"
    assert clock(3725.25) == "1:02:05.2"
    assert clock(3725.25, 0) == "1:02:05"
