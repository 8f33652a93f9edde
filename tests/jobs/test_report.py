"""report.html: what it says, in a real browser, and at a million frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypstream.core.formatting import clock
from polypstream.errors import DataError
from polypstream.jobs.report import read_table, write_report
from polypstream.sinks.tables import HEADER
from tests.conftest import call


@pytest.fixture
def run(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> Path:
    """Results of a clip with one finding, whose name is as odd as names get."""
    video = make(name="<b>&colon.mp4", frames=75)
    call("process", video, "--output", tmp_path / "out", "--model", red_model)
    return next((tmp_path / "out").iterdir())


def test_a_run_ends_with_its_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "Research use only, not a medical device." in page
    assert "&lt;b&gt;&amp;colon.mp4" in page
    assert "<b>&colon" not in page
    assert page.count('class="card"') == 1
    assert "0:00:00.0 to 0:00:02.0" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.browser
def test_the_report_in_a_browser(run: Path, browse: Callable[[], Any]) -> None:
    driver = browse()
    driver.get(f"file://{run / 'report.html'}")
    card, bar = (driver.find_element("css selector", f".{name}") for name in ("card", "bar"))
    assert card.get_attribute("class") == "card"
    bar.click()
    assert card.get_attribute("class") == "card chosen"
    assert driver.execute_script("return document.querySelector('.card img').naturalWidth") == 480
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


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
    rows = "".join(f"{index},{index / 30:.6f},0,0.0,{index % 97 / 97:.4f},,0,{index % 2},0\n" for index in range(10**6))
    (run / "frames.csv").write_text(",".join(HEADER) + "\n" + rows)
    page = write_report(run).read_text()
    assert len(page) < 10_000_000
    assert page.count('class="card"') == 1000
    assert "50.0 %" in page


def test_the_timeline_keeps_every_peak(tmp_path: Path) -> None:
    table = tmp_path / "frames.csv"
    rows = [f"{index},{index / 25:.6f},0,0.0,{float(index == 7777):.4f},,1,0,0" for index in range(20_000)]
    table.write_text("\n".join([",".join(HEADER), *rows]) + "\n")
    timeline, qualities = read_table(table)
    assert np.flatnonzero(timeline.highest).tolist() == [round(7777 / 19_999 * 1199)]
    assert qualities == {"blurred": 1.0, "overexposed": 0.0, "outside": 0.0}
    assert [label for _, label in timeline.ticks()][:3] == ["0:00:00", "0:02:00", "0:04:00"]


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
