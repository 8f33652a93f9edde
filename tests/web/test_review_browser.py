"""The page Review, driven in a real browser."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polypstream.sources.demo_colon import DemoColon, DemoSettings
from tests.conftest import RED, Clip, make_clip, make_red_model
from tests.jobs.test_annotations import read_by_others
from tests.web.serving import Served, served, settings_for, until
from tests.web.test_review import annotations_of
from tests.web.test_serve import start

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# The part of a demo that shows its polyp.
DEMO, FIRST = DemoSettings(seconds=4, seed=2, width=320, height=240), 10
# In this frame a reader draws the polyp.
DRAWN = 30


@cache
def colon() -> DemoColon:
    return DemoColon(DEMO)


@cache
def rendered(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame of the demo, and its truth: bool [240, 320], the pixels of the polyp."""
    rgb, numbers = colon().render(FIRST + index)
    return rgb, numbers > 0


def scene(clip: Clip, index: int) -> np.ndarray:
    """The demo with a red disc that stands for a polyp, and a red square that is none.

    The model of the test finds what is red. So the demo's own polyp is missed.
    """
    rgb = rendered(index)[0].copy()
    x, y, radius = red_disc(index)
    cv2.circle(rgb, (x, y), radius, RED, -1)
    if index < 25:
        rgb[140:185, 225:275] = RED
    return rgb


def red_disc(index: int) -> tuple[int, int, int]:
    """Centre and radius of the red disc, in pixels."""
    return 70 + index, 180, 30


CLIP = Clip(frames=48, draw=scene, options={"crf": "12"})


def element(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def press(driver: Any, name: str) -> None:
    """Click on a button, and wait until the page has done what it asks for."""
    driver.execute_script(f"document.querySelector('[data-act={name}], [data-tool={name}]').click()")
    settled(driver)


def settled(driver: Any) -> None:
    driver.execute_async_script("const done = arguments[0]; setTimeout(() => saving.then(done), 20)")


def carried(driver: Any) -> str:
    """Wait until the page has carried what was drawn to other frames; what it says."""
    driver.execute_async_script(
        "const done = arguments[0]; (async () => { while (carrying) await carrying; await saving; done(); })()"
    )
    return str(element(driver, "[data-value=carried]").text)


def paint(driver: Any, points: list[tuple[float, float]], halfway: Callable[[], object] = lambda: None) -> None:
    """Draw with the mouse along points, in pixels of the frame. Before the last one something may happen."""
    from selenium.webdriver import ActionChains

    canvas = element(driver, ".canvas")
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    places = driver.execute_script(
        "const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;"
        "return arguments[0].map(([x, y]) => {"
        "  const at = toCanvas().transformPoint(new DOMPoint(x, y));"
        "  return [at.x / ratio - box.width / 2, at.y / ratio - box.height / 2];"
        "});",
        points,
    )
    actions = ActionChains(driver, duration=20)
    for number, (x, y) in enumerate(places[:-1]):
        actions.move_to_element_with_offset(canvas, round(x), round(y))
        if number == 0:
            actions.click_and_hold()
    actions.perform()
    halfway()
    last = ActionChains(driver, duration=20).move_to_element_with_offset(canvas, *map(round, places[-1]))
    last.release().perform()
    settled(driver)


def go_to(driver: Any, frame: int) -> None:
    driver.execute_async_script(f"const done = arguments[0]; perform(() => goTo({frame})).then(done)")


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.count_nonzero(found & truth) / np.count_nonzero(found | truth))


def strokes(mask: np.ndarray, brush: int) -> list[tuple[float, float]]:
    """Points along which a brush of this diameter in pixels fills a mask: around it, then row by row."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (brush, brush))
    inside = cv2.erode(mask.astype(np.uint8), kernel)
    ((outline, *_), _) = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    around = [*outline[::4, 0].tolist(), outline[0, 0].tolist()]
    rows = np.flatnonzero(inside.any(axis=1))[:: brush // 2]
    columns = [np.flatnonzero(inside[row]).tolist() for row in rows]
    zigzag = [(x, y) for y, found in zip(rows.tolist(), columns, strict=True) for x in (found[0], found[-1])]
    return [(x + 0.5, y + 0.5) for x, y in (*around, *zigzag)]


def complaints(driver: Any) -> list[str]:
    return [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def open_review(driver: Any, app: Served, id_: str) -> None:
    driver.get(f"{app.address}/recordings/{id_}")
    driver.find_element("link text", "Review").click()
    until(lambda: driver.execute_script("return pictures.has(frame)"))
    settled(driver)
    name = element(driver, "[name=reader]")
    name.clear()
    name.send_keys("Anna\t")


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process is killed at the end, also of a test that fails."""
    with process:
        try:
            yield
        finally:
            process.kill()


def test_a_reader_corrects_a_recording(browse: Callable[[], Any], tmp_path: Path) -> None:
    """A false track is rejected, an outline corrected, a missed polyp drawn; the server is killed; COCO has all."""
    model = make_red_model(tmp_path / "red.onnx", threshold="0.8", peak="0.9")
    driver = browse()
    process, app = start(tmp_path / "served", model, "ultrafast")
    with killed(process):
        id_ = app.send(make_clip(tmp_path, CLIP))
        app.wait_for(id_, "finished")
        found = {each["track"]: outlines(app, id_, each["track"]) for each in tracks_of(app, id_)}
        assert len(found) == 2
        false = next(track for track, polygons in found.items() if polygons[10][:, 0].max() > 200)
        true = next(track for track in found if track != false)
        open_review(driver, app, id_)
        reject(driver, false)
        assert driver.execute_script("return track") == true
        correct_and_carry(driver)
        draw_and_carry(driver)
        # Outlines that were changed while they were carried are not stored.
        assert [each for each in complaints(driver) if "/carry " not in each or "409 (Conflict)" not in each] == []
    process, app = start(tmp_path / "served", model, "ultrafast")
    with killed(process):
        annotations_of(app, f"/api/recordings/{id_}", "").extractall(tmp_path)
    masks = read_by_others("coco-tracks", tmp_path / "clip-coco", tmp_path)
    by_track: dict[int, dict[int, np.ndarray]] = {}
    for name, mask in masks.items():
        frame, track = name.removeprefix("clip_").split("-")
        by_track.setdefault(int(track), {})[int(frame)] = mask > 0
    assert sorted(by_track) == [true, 3]
    for moment in (10, 14):  # without its upper edge, where it was corrected and where motion carried it
        network = cv2.fillPoly(np.zeros((240, 320), np.uint8), [found[true][moment]], 1)
        assert np.count_nonzero(by_track[true][moment]) < 0.95 * np.count_nonzero(network)
    agreement = {number: iou(mask, rendered(number)[1]) for number, mask in by_track[3].items()}
    assert min(agreement.values()) > 0.85
    assert min(agreement) < DRAWN < max(agreement)
    assert len(agreement) > 25  # more than a second


def tracks_of(app: Served, id_: str) -> list[dict[str, Any]]:
    return list(app.get(f"/api/recordings/{id_}/review").json()["tracks"])


def outlines(app: Served, id_: str, track: int) -> dict[int, np.ndarray]:
    """The outline of a track by number of the frame, int32 [n, 2]."""
    found = app.get(f"/api/recordings/{id_}/review/tracks/{track}").json()
    return {each["frame"]: np.array(each["polygons"][0], np.int32).reshape(-1, 2) for each in found}


def reject(driver: Any, track: int) -> None:
    while driver.execute_script("return track") != track:
        press(driver, "nextTrack")
    element(driver, ".canvas").send_keys("r")
    settled(driver)
    assert "rejected by Anna" in element(driver, f"[data-track='{track}']").text
    press(driver, "nextTrack")


def correct_and_carry(driver: Any) -> None:
    """Erase the upper edge of the disc in frame 10, undo it while it is carried, and erase it again."""
    go_to(driver, 10)
    x, y, radius = red_disc(10)
    edge: list[tuple[float, float]] = [(x - radius, y - radius), (x + radius, y - radius)]
    press(driver, "eraser")
    paint(driver, edge)
    press(driver, "undo")
    carried(driver)
    assert driver.execute_script("return [...outlines.values()].every(each => each.source === 'network')")
    assert "outline by the model" in element(driver, "[data-value=source]").text
    paint(driver, edge)
    assert "drawn by Anna" in element(driver, "[data-value=source]").text
    assert carried(driver).startswith("The outline of frame 10 was carried to frames ")
    assert driver.execute_script("return outlines.get(14).source") == "motion"


def draw_and_carry(driver: Any) -> None:
    """Draw the polyp that was missed, undo it, draw it again, and let it be carried or not."""
    go_to(driver, DRAWN)
    press(driver, "drawPolyp")
    driver.execute_script("size.value = 12")
    points = strokes(rendered(DRAWN)[1], 12)
    paint(driver, points)
    assert "Polyp 3: drawn" in element(driver, ".tracks").text
    press(driver, "undo")
    assert "Polyp 3" not in element(driver, ".tracks").text
    paint(driver, points[: len(points) // 2])
    # The second half is begun before the first one is carried, and ends after that.
    paint(driver, points[len(points) // 2 - 1 :], halfway=lambda: carried(driver))
    assert carried(driver).startswith(f"The outline of frame {DRAWN} was carried to frames ")
    press(driver, "leave")
    assert f"Polyp 3: drawn, frame {DRAWN}." in element(driver, ".tracks").text  # the outline that was drawn stays
    press(driver, "undo")
    assert carried(driver).startswith(f"The outline of frame {DRAWN} was carried to frames ")
    go_to(driver, DRAWN + 5)
    assert element(driver, "[data-value=source]").text == "carried, Anna"


def question(driver: Any) -> Any:
    """The question that the page asks."""
    from selenium.webdriver.support.expected_conditions import alert_is_present
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(driver, 20).until(alert_is_present())


def test_another_reader_is_asked_before_something_is_replaced(
    browse: Callable[[], Any], tmp_path: Path, red_model: Path
) -> None:
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = app.send(make_clip(tmp_path, Clip()))
        app.wait_for(id_, "finished")
        driver = browse()
        open_review(driver, app, id_)
        press(driver, "accept")
        name = element(driver, "[name=reader]")
        name.clear()
        name.send_keys("Bert\t")
        driver.execute_script("document.querySelector('[data-act=reject]').click()")
        assert "Anna has marked polyp 1 as accepted" in question(driver).text
        driver.switch_to.alert.dismiss()
        settled(driver)
        assert "accepted by Anna" in element(driver, ".tracks").text
        driver.execute_script("document.querySelector('[data-act=reject]').click()")
        question(driver).accept()
        settled(driver)
        assert "rejected by Bert" in element(driver, ".tracks").text


def test_without_a_name_nothing_is_stored(browse: Callable[[], Any], tmp_path: Path, red_model: Path) -> None:
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = app.send(make_clip(tmp_path, Clip()))
        app.wait_for(id_, "finished")
        driver = browse()
        driver.get(f"{app.address}/recordings/{id_}/review")
        until(lambda: driver.execute_script("return pictures.has(frame)"))
        press(driver, "accept")
        assert "Enter your name first" in element(driver, "[data-value=said]").text
        assert app.get(f"/api/recordings/{id_}/review").json()["revision"] == 0


def test_outlines_lie_on_a_rotated_recording(browse: Callable[[], Any], tmp_path: Path, red_model: Path) -> None:
    """What is painted on the turned picture is stored in pixels of the stored frame, and zooming changes nothing."""
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = app.send(make_clip(tmp_path, Clip(rotation=90)))
        app.wait_for(id_, "finished")
        driver = browse()
        open_review(driver, app, id_)
        press(driver, "zoomIn")
        go_to(driver, 25)
        press(driver, "brush")
        paint(driver, [(150, 110), (190, 110)])
        outline = app.get(f"/api/recordings/{id_}/review/tracks/1").json()[-1]
        points = np.array(outline["polygons"][0]).reshape(-1, 2)
        assert outline["frame"] == 25
        assert np.abs(points.min(axis=0) - (138, 98)).max() <= 2
        assert np.abs(points.max(axis=0) - (202, 122)).max() <= 2


def touch(driver: Any, *moments: list[tuple[float, float]]) -> None:
    """Fingers on the page: where they are in each moment, in pixels of the window."""
    for number, fingers in enumerate([*moments, []]):
        kind = "touchStart" if number == 0 else "touchMove" if fingers else "touchEnd"
        points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(fingers)]
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    settled(driver)


def test_the_page_fits_on_a_phone(browse: Callable[[], Any], tmp_path: Path, red_model: Path) -> None:
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = app.send(make_clip(tmp_path, Clip()))
        app.wait_for(id_, "finished")
        driver = browse()
        metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(f"{app.address}/recordings/{id_}/review")
        until(lambda: driver.execute_script("return pictures.has(frame)"))
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
        element(driver, "[name=reader]").send_keys("Anna\t")
        press(driver, "brush")
        x, y = driver.execute_script(
            "canvas.scrollIntoView({ block: 'center' }); const box = canvas.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2];"
        )
        touch(driver, [(x - 20, y)], [(x + 20, y)])
        assert "drawn by Anna" in element(driver, "[data-value=source]").text
        touch(driver, [(x - 20, y), (x + 20, y)], [(x - 60, y), (x + 60, y)])
        assert driver.execute_script("return view.zoom") > 2
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert complaints(driver) == []
