"""The page Review, driven in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.conftest import RED, Clip, disc, make_clip, picture
from tests.web.serving import Served, served, settings_for, until
from tests.web.test_review import coco_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# A blue polyp, which the model of the tests does not find, and how it moves: pixels per frame.
BLUE, RADIUS, SPEED = (40, 60, 200), 22, 1.0
WALL = np.random.default_rng(1).integers(60, 120, (30, 60, 1), np.uint8)


def scene(clip: Clip, index: int) -> np.ndarray:
    """The red disc of a Clip, a red square that is no polyp, and a blue polyp on a wall that moves with it."""
    wall = cv2.resize(np.repeat(WALL, 3, axis=2), (640, 320), interpolation=cv2.INTER_CUBIC)
    left = 120 - round(SPEED * index)
    rgb = np.ascontiguousarray(wall[:240, left : left + 320])
    red = (picture(clip, index) == RED).all(axis=2)
    rgb[red] = RED
    if index < 25:
        rgb[185:230, 250:300] = RED
    x, y = blue_at(index)
    cv2.circle(rgb, (round(x), round(y)), RADIUS, BLUE, -1)
    return rgb


def blue_at(index: int) -> tuple[float, float]:
    return 60 + SPEED * index, 50.0


CLIP = Clip(frames=75, draw=scene, options={"crf": "12"})


def element(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def press(driver: Any, name: str) -> None:
    """Click on a button, and wait until the page has done what it asks for."""
    driver.execute_script(f"document.querySelector('[data-act={name}], [data-tool={name}]').click()")
    settled(driver)


def settled(driver: Any) -> None:
    driver.execute_async_script("const done = arguments[0]; setTimeout(() => saving.then(done), 20)")


def paint(driver: Any, points: list[tuple[float, float]]) -> None:
    """Draw with the mouse along points, in pixels of the frame."""
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
    for number, (x, y) in enumerate(places):
        actions.move_to_element_with_offset(canvas, round(x), round(y))
        if number == 0:
            actions.click_and_hold()
    actions.release().perform()
    settled(driver)


def go_to(driver: Any, frame: int) -> None:
    driver.execute_async_script(f"const done = arguments[0]; perform(() => goTo({frame})).then(done)")


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.count_nonzero(found & truth) / np.count_nonzero(found | truth))


def mask_of(annotation: dict[str, Any]) -> np.ndarray:
    """bool [240, 320] of a COCO annotation."""
    polygons = [np.array(flat).reshape(-1, 2) - 0.5 for flat in annotation["segmentation"]]
    return cv2.fillPoly(np.zeros((240, 320), np.uint8), [np.rint(each).astype(np.int32) for each in polygons], 1) > 0


def blue_mask(index: int) -> np.ndarray:
    x, y = blue_at(index)
    return cv2.circle(np.zeros((240, 320), np.uint8), (round(x), round(y)), RADIUS, 1, -1) > 0


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


def test_a_reader_corrects_a_recording(browse: Callable[[], Any], tmp_path: Path, red_model: Path) -> None:
    """A false track is rejected, an outline corrected, a missed polyp drawn; the server ends; COCO has all of it."""
    settings = settings_for(red_model)
    driver = browse()
    with served(tmp_path / "served", settings) as app:
        id_ = app.send(make_clip(tmp_path, CLIP))
        app.wait_for(id_, "finished")
        tracks = {
            each["track"]: app.get(f"/api/recordings/{id_}/review/tracks/{each['track']}").json()
            for each in app.get(f"/api/recordings/{id_}/review").json()["tracks"]
        }
        false = next(track for track, found in tracks.items() if found[0]["polygons"][0][0] > 200)
        true = next(track for track in tracks if track != false)
        open_review(driver, app, id_)
        while driver.execute_script("return track") != false:
            press(driver, "nextTrack")
        element(driver, ".canvas").send_keys("r")
        settled(driver)
        assert "rejected by Anna" in element(driver, f"[data-track='{false}']").text
        press(driver, "nextTrack")
        assert driver.execute_script("return track") == true
        go_to(driver, 10)
        x, y, radius = disc(CLIP, 10)
        press(driver, "eraser")
        paint(driver, [(x - radius, y - radius), (x + radius, y - radius)])  # its upper edge is wrong
        press(driver, "undo")
        assert "network" in element(driver, "[data-value=source]").text
        paint(driver, [(x - radius, y - radius), (x + radius, y - radius)])
        assert "drawn by Anna" in element(driver, "[data-value=source]").text
        go_to(driver, 35)
        press(driver, "drawPolyp")
        driver.execute_script("size.value = 2 * arguments[0]", RADIUS)
        paint(driver, [blue_at(35), (blue_at(35)[0] + 1, blue_at(35)[1])])
        assert "Polyp 3: drawn" in element(driver, ".tracks").text
        press(driver, "undo")
        assert "Polyp 3" not in element(driver, ".tracks").text
        paint(driver, [blue_at(35), (blue_at(35)[0] + 1, blue_at(35)[1])])
        assert "Polyp 3: drawn" in element(driver, ".tracks").text
        press(driver, "carry")
        assert element(driver, "[data-value=said]").text.startswith("Carried to frames ")
        go_to(driver, 40)
        assert element(driver, "[data-value=source]").text == "carried, Anna"
        assert complaints(driver) == []
    with served(tmp_path / "served", settings) as app:
        coco = coco_of(app, f"/api/recordings/{id_}", "")
        names = {image["id"]: int(image["file_name"][-10:-4]) for image in coco["images"]}
        found = {(each["attributes"]["track_id"], names[each["image_id"]]): each for each in coco["annotations"]}
        assert not [key for key in found if key[0] == false]
        assert found[true, 10]["attributes"]["reviewed"]
        assert found[true, 10]["area"] < 0.95 * found[true, 11]["area"]
        drawn = {frame: iou(mask_of(each), blue_mask(frame)) for (track, frame), each in found.items() if track == 3}
        assert min(drawn.values()) > 0.85
        assert min(drawn) < 35 < max(drawn)
        assert len(drawn) > 25  # more than a second
        assert not found[true, 11]["attributes"]["reviewed"]


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
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert complaints(driver) == []
