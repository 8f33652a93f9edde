"""The page with the rooms of a department, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polypstream.core.pipeline import in_background
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live
from polypstream.jobs.live_rooms import Rooms
from polypstream.sinks.browser import Browser
from polypstream.web.live import LivePage
from polypstream.web.server import web
from tests.web.test_live import SETTINGS, until, value
from tests.web.test_live_video import is_marked

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def boxes(driver: Any, selector: str = ".source") -> list[dict[str, float]]:
    """Where elements are in the window, in pixels."""
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.getBoundingClientRect().toJSON())"
    return list(driver.execute_script(script, selector))


def names(driver: Any, selector: str = ".source") -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.dataset.name)"
    return list(driver.execute_script(script, selector))


def press(driver: Any, key: str) -> None:
    driver.find_element("css selector", "body").send_keys(key)


def all_fit(driver: Any) -> bool:
    """Whether all tiles are in the window, and none overlaps another one."""
    width, height = driver.execute_script("return [innerWidth, innerHeight]")
    found = boxes(driver)
    corners = {(each["left"], each["top"]) for each in found}
    pictures = boxes(driver, ".picture")
    inside = all(each["right"] <= width and each["bottom"] <= height for each in [*found, *pictures])
    return inside and len(corners) == len(found) and all(each["height"] > 40 for each in pictures)


def test_rooms_are_tiles_one_is_enlarged_and_a_reload_changes_them(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    driver, file, video = browse(), tmp_path / "rooms.yaml", make(frames=50)
    lines = [f"- {{name: {name}, source: 'loop:{video}'}}\n" for name in ("one", "two", "three", "five")]
    lost = "- {name: lost, source: 'tcp://127.0.0.1:9'}\n"
    file.write_text("".join([*lines[:3], lost]))
    rooms, browser = Rooms(file, SETTINGS, masks=False, clips=None), Browser()
    opened = [room.source for room in rooms.open()]
    live = Live(opened, Segmenter(red_model, "cpu"), SETTINGS, [("web", browser)], changes=True)
    with (
        web([LivePage(live, browser, rooms)], "127.0.0.1", 0, None) as address,
        in_background("live", lambda: live.run(lambda: None), live.close),
    ):
        driver.get(address)
        until(lambda: is_marked(driver))
        # The machine may be too slow for the others, which is a problem, too.
        until(lambda: "lost" in names(driver, ".problem"))
        assert driver.find_element("css selector", "[data-name=lost] .state").text == "Connection refused"
        assert " of 4 with a problem" in value(driver, "problems")
        assert driver.title.startswith("(")
        until(lambda: re.fullmatch(r"[1-9]\d* per second", value(driver, "pace")))
        for size in ((1400, 900), (900, 900), (1900, 650)):
            driver.set_window_size(*size)
            until(lambda: all_fit(driver))
        driver.set_window_size(1400, 900)

        driver.find_element("css selector", "[data-name=two] .picture").click()
        until(lambda: names(driver, ".chosen") == ["two"])
        assert driver.current_url.endswith("#two")
        until(lambda: all_fit(driver))
        (picture,) = boxes(driver, ".chosen .picture")
        assert picture["width"] > 1000
        assert driver.find_element("css selector", ".chosen .findings").is_displayed()
        press(driver, "\ue014")  # right arrow
        until(lambda: names(driver, ".chosen") == ["three"])
        press(driver, "1")
        until(lambda: names(driver, ".chosen") == ["one"])
        note = driver.find_element("css selector", ".chosen .mark [name=text]")
        note.send_keys("2 o")
        assert names(driver, ".chosen") == ["one"]
        assert driver.find_element("name", "marked").is_selected()
        press(driver, "\ue00c")  # Escape
        until(lambda: names(driver, ".chosen") == [])
        until(lambda: all_fit(driver))
        driver.find_element("link text", "lost").send_keys("\n")  # by keyboard
        until(lambda: names(driver, ".chosen") == ["lost"])
        driver.find_element("link text", "All rooms").click()

        driver.execute_script("window.same = document.querySelector('[data-name=one]')")
        changed = lines[0].replace("}", ", display: pass-through}")
        file.write_text("".join([changed, lines[2], lines[3]]))
        assert rooms.reload(live).restarted == ["one"]
        until(lambda: names(driver) == ["one", "three", "five"])
        until(lambda: is_marked(driver))
        assert driver.execute_script("return window.same === document.querySelector('[data-name=one]')")
        widths = "return [...document.querySelectorAll('canvas.picture')].map((canvas) => canvas.width)"
        until(lambda: driver.execute_script(widths) == [320, 320, 320])
        until(lambda: all_fit(driver))
        until(lambda: browser.viewers("five") == 1)

        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        )
        until(lambda: len({each["left"] for each in boxes(driver)}) == 1)
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
        press(driver, "2")
        until(lambda: boxes(driver, ".chosen")[0]["top"] < boxes(driver, "[data-name=one]")[0]["top"])
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
