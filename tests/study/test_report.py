"""The report of a study, in a real browser."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polypstream.jobs.results import load_run
from polypstream.study import report
from polypstream.study.charts import Chart, round_up, tick_step
from polypstream.study.contact_sheet import Wanted, write_pictures
from tests.conftest import Clip, call, make_clip, picture
from tests.jobs.test_score import write_video


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> Path:
    """A study of two settings on a recording with a red disc, of which the ground truth knows nothing.

    The ground truth has a polyp elsewhere, from the beginning to the end, which is missed.
    """
    folder = tmp_path_factory.mktemp("study")
    clip = Clip(frames=45)
    path = make_clip(folder, clip)
    for name, steady in (("steady", "true"), ("single frames", "false")):
        model = ("--set", f"inference.model={red_model}", "--set", "inference.provider=cpu")
        call("process", path, "--output", folder / name, "--set", f"findings.steady={steady}", *model)
    corner = np.zeros((clip.height, clip.width), np.uint8)
    corner[:20, :20] = 1
    (folder / "truth").mkdir()
    write_video(folder / "truth" / "clip.mkv", [corner] * clip.frames)
    runs = (folder / "steady", folder / "single frames")
    call("study", folder / "truth", *runs, "--output", folder / "study")
    return folder / "study"


def test_the_report_is_one_file_without_network(study: Path) -> None:
    page = (study / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4  # a false positive and a missed polyp of each setting
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert not (study / "pictures").exists()


def test_a_sheet_shows_of_each_setting_what_lasted_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_CARDS", 2)
    cards = [[{"seconds": seconds} for seconds in lasting] for lasting in ((1.0, 3.0, 2.0), (5.0,))]
    sheet = report.Sheet("missed", "Missed polyps", "", (), "polyps.csv", cards)
    assert [card["seconds"] for card in sheet.shown] == [3.0, 2.0, 5.0]
    assert sheet.left_out == [1, 0]


@pytest.mark.browser
@pytest.mark.slow
def test_causes_are_chosen_tallied_kept_and_downloaded(study: Path, browse: Callable[[], Any], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    browser = browse()
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get(f"file://{study / 'report.html'}")
    sheet = browser.find_element(By.ID, "false-positives")
    cards = sheet.find_elements(By.CSS_SELECTOR, ".card")
    # The disc is in 30 frames of 45. Held findings last longer.
    lengths = [float(card.get_attribute("data-seconds")) for card in cards]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths == pytest.approx([1.2, 1.2], abs=0.15)

    def tally() -> dict[str, list[str]]:
        rows = browser.find_elements(By.CSS_SELECTOR, "#false-positives .tally tbody tr")
        return {
            row.find_element(By.TAG_NAME, "th").text: [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
            for row in rows
        }

    assert tally()["not stated"] == ["1", "1"]
    setting = cards[0].get_attribute("data-setting")
    Select(cards[0].find_element(By.TAG_NAME, "select")).select_by_visible_text("fold")
    expected = ["1", "0"] if setting == "steady" else ["0", "1"]
    assert tally()["fold"] == expected
    assert tally()["all"] == ["1", "1"]
    browser.refresh()
    assert tally()["fold"] == expected
    browser.find_element(By.CSS_SELECTOR, "#false-positives .download").click()
    saved = tmp_path / "false-positives-causes.csv"
    WebDriverWait(browser, 10).until(lambda _: saved.is_file())
    with saved.open() as file:
        assert next((row["setting"], row["cause"]) for row in csv.DictReader(file)) == (setting, "fold")
    assert "Those that were in view longest" in browser.find_element(By.ID, "missed").text
    missed = browser.find_elements(By.CSS_SELECTOR, "#missed .card")
    assert len(missed) == 2
    assert "polyp 1" in missed[0].text
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


@pytest.mark.slow
def test_without_recording_and_video_the_report_has_no_pictures(study: Path, tmp_path: Path) -> None:
    """It has the video's pictures where the recording is gone, and says so where both are."""
    folder = study.parent
    (folder / "clip.mp4").rename(folder / "moved.mp4")
    try:
        call("study", folder / "truth", folder / "steady", "--output", tmp_path / "by-video")
        assert (tmp_path / "by-video" / "report.html").read_text().count("data:image/jpeg") == 2
        (folder / "steady" / "clip" / "annotated.mp4").rename(folder / "annotated.mp4")
        call("study", folder / "truth", folder / "steady", "--output", tmp_path / "by-none")
        page = (tmp_path / "by-none" / "report.html").read_text()
        assert "data:image/jpeg" not in page
        assert page.count("No picture: neither the recording nor annotated.mp4 can be read.") == 2
        (folder / "annotated.mp4").rename(folder / "steady" / "clip" / "annotated.mp4")
    finally:
        (folder / "moved.mp4").rename(folder / "clip.mp4")


def test_the_box_is_around_the_finding(study: Path) -> None:
    """The picture of a false positive is of the recording without markers: a red disc on grey, and the white box."""
    encoded = (study / "report.html").read_text().partition("data:image/jpeg;base64,")[2].partition('"')[0]
    bgr = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert_box_is_around_disc(bgr, (360, 480, 3))  # enlarged by half


def assert_box_is_around_disc(picture: np.ndarray, shape: tuple[int, ...]) -> None:
    bgr = picture.astype(int)
    red, white = bgr[..., 2] - bgr[..., 1] > 100, bgr.min(axis=2) > 180
    assert bgr.shape == shape
    inner, outer = (
        np.array([rows.min(), rows.max(), columns.min(), columns.max()])
        for rows, columns in (np.nonzero(red), np.nonzero(white))
    )
    assert np.abs(inner - outer).max() <= 8
    assert red.sum() == pytest.approx(np.pi * (0.15 * min(shape[:2])) ** 2, rel=0.1)


def test_boxes_follow_the_rotation_of_a_recording(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    """The box of the disc is around it in the picture as displayed."""
    path = make(frames=10, rotation=90, draw=lambda clip, _: picture(Clip(frames=1000), 0))
    model = ("--set", f"inference.model={red_model}", "--set", "inference.provider=cpu")
    call("process", path, "--output", tmp_path / "runs", *model)
    run = load_run(tmp_path / "runs" / "clip")
    box = cv2.boundingRect(np.concatenate(run.tracks[0].outlines[0].polygons))
    assert write_pictures(run, [Wanted(3, np.array(box), "a.jpg")], tmp_path / "pictures") == {"a.jpg"}
    assert_box_is_around_disc(cv2.imread(str(tmp_path / "pictures" / "a.jpg")), (320, 240, 3))


def test_axes_have_few_round_ticks() -> None:
    assert [tick_step(value) for value in (1, 0.018, 12, 100)] == [0.2, 0.005, 2.5, 20]
    assert [round_up(value) for value in (0, 0.018, 11, 101)] == pytest.approx([1, 0.02, 12.5, 125])
    chart = Chart.of("title", "x", "y", [[(0, 0), (2, 1)], []])
    assert (chart.right, chart.top) == (2, 1)
    assert [label for _, label in chart.ticks(chart.right)] == ["0", "0.5", "1", "1.5", "2"]
    assert chart.path(chart.curves[0]) == "M0.0 1000.0 L1000.0 0.0"
