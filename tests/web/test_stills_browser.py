"""Sets of images in a real browser: chosen, dropped as a folder, and reviewed image by image."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.serving import Served, served, settings_for, until
from tests.web.test_review_browser import complaints, element, go_to, open_review, paint, press, settled
from tests.web.test_stills import save_set

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def app(tmp_path: Path, red_model: Path) -> Iterator[Served]:
    with served(tmp_path / "served", settings_for(red_model)) as found:
        yield found


def drop(driver: Any, *paths: Path) -> None:
    """Drop files and folders on the page, as a file manager does."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})


def finished(app: Served, count: int) -> list[dict[str, Any]]:
    """The sets and recordings, the newest first, once there are this many and all are finished."""

    def all_done() -> bool:
        found = app.get("/api/recordings").json()
        return len(found) == count and all(each["state"] == "finished" for each in found)

    until(all_done, 60)
    return list(app.get("/api/recordings").json())


def test_images_are_chosen_and_reviewed_one_by_one(browse: Callable[[], Any], app: Served, tmp_path: Path) -> None:
    driver = browse()
    driver.get(app.address + "/recordings")
    images = save_set(tmp_path / "views")
    element(driver, ".drop input").send_keys("\n".join(map(str, images)))
    (info,) = finished(app, 1)
    assert (info["name"], info["image_count"], info["findings"]) == ("5 images", 5, 4)
    id_ = info["id"]
    driver.get(f"{app.address}/recordings/{id_}")
    assert [each.text for each in driver.find_elements("css selector", ".card h3")] == [
        "a.png",
        "b.jpg",
        "c.png",
        "turned.jpg",
    ]
    loaded = "return [...document.querySelectorAll('.card img')].every((each) => each.naturalWidth > 0)"
    until(lambda: driver.execute_script(loaded))
    open_review(driver, app, id_)
    assert element(driver, "[data-value=frame]").text == "Image 1 of 4: a.png"
    assert not driver.find_elements("css selector", "[data-act=carry]")
    element(driver, ".canvas").send_keys("a")
    settled(driver)
    assert "Polyp 1: probability 1.00, image 1. accepted by Anna" in element(driver, "[data-track='1']").text
    press(driver, "nextFrame")  # which shows no polyp: the brush draws a new one
    press(driver, "brush")
    driver.execute_script("size.value = 40")
    paint(driver, [(100, 100), (140, 100)])
    assert "Polyp 5: drawn, image 2" in element(driver, ".tracks").text
    press(driver, "nextFrame")
    assert driver.execute_script("return track") == 2
    press(driver, "nextTrack")
    assert element(driver, "[data-value=frame]").text == "Image 3 of 4: c.png"
    element(driver, ".canvas").send_keys("r")
    settled(driver)
    go_to(driver, 3)  # another size
    assert driver.execute_script("return [track, mask.width, mask.height]") == [4, 240, 320]
    paint(driver, [(20, 290), (30, 300)])
    tracks = {each["track"]: each for each in app.get(f"/api/recordings/{id_}/review").json()["tracks"]}
    assert [tracks[number]["decision"] and tracks[number]["decision"]["decision"] for number in range(1, 6)] == [
        "accepted",
        None,
        "rejected",
        None,
        "accepted",
    ]
    (drawn,) = app.get(f"/api/recordings/{id_}/review/tracks/5").json()
    points = np.array(drawn["polygons"][0]).reshape(-1, 2)
    assert drawn["frame"] == 1
    assert np.abs(points.min(axis=0) - (80, 80)).max() <= 2
    assert np.abs(points.max(axis=0) - (160, 120)).max() <= 2
    (corrected,) = app.get(f"/api/recordings/{id_}/review/tracks/4").json()
    corners = np.concatenate([np.array(each).reshape(-1, 2) for each in corrected["polygons"]])
    assert corners[:, 1].max() > 310
    driver.get(f"{app.address}/recordings/{id_}")
    assert "a polyp drawn by Anna" in driver.find_elements("css selector", ".card")[1].text
    driver.find_elements("css selector", ".card a")[-1].click()
    until(lambda: "Image 4 of 4" in element(driver, "[data-value=frame]").text)
    assert complaints(driver) == []


def test_a_folder_is_dropped_and_one_is_chosen(browse: Callable[[], Any], app: Served, tmp_path: Path) -> None:
    """Of a folder, only images and recordings are taken, also those in its folders."""
    images = save_set(tmp_path / "views")
    (tmp_path / "views" / "more").mkdir()
    shutil.copy(images[0], tmp_path / "views" / "more" / "a.png")
    (tmp_path / "views" / "Thumbs.db").write_bytes(b"1234")
    driver = browse()
    driver.get(app.address + "/recordings")
    drop(driver, tmp_path / "views")
    (dropped,) = finished(app, 1)
    assert (dropped["name"], dropped["image_count"], dropped["findings"]) == ("views", 6, 5)
    names = [image["image"] for image in app.info(dropped["id"])["images"]]
    assert names == ["a.png", "a-2.png", "b.jpg", "c.png", "turned.jpg"]
    element(driver, "input[webkitdirectory]").send_keys(str(tmp_path / "views" / "more"))
    chosen, _ = finished(app, 2)
    assert (chosen["name"], chosen["image_count"], chosen["findings"]) == ("more", 1, 1)
    (tmp_path / "empty").mkdir()
    drop(driver, tmp_path / "empty")
    until(lambda: element(driver, "[data-value=said]").text == "empty: has no images and no recordings")
    until(lambda: not driver.find_elements("css selector", ".uploads li"))
    assert complaints(driver) == []
