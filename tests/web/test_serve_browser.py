"""The three pages of `polypstream serve`, driven in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polypstream.inference.model_card import shipped_weights
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import findings_mask, load_image, prepare_image
from polypstream.stages.findings import choose_rules, find_region
from polypstream.web import pictures
from polypstream.web.pictures import SAMPLES
from tests.conftest import RED, Clip, picture
from tests.web.serving import Served, click_at, served, settings_for, until

pytestmark = pytest.mark.browser
PICTURE = Clip(width=320, height=240)
SAMPLE_FOLDER = Path(pictures.__file__).parent / "static" / "samples"


@pytest.fixture
def app(tmp_path: Path, red_model: Path) -> Iterator[Served]:
    with served(tmp_path / "served", settings_for(red_model)) as found:
        yield found


def element(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def text_of(driver: Any, selector: str) -> str:
    """The text of an element, asked in one go: a page that replaces its parts leaves no stale one in hand."""
    script = "return (document.querySelector(arguments[0])?.innerText ?? '').trim()"
    return str(driver.execute_script(script, selector))


def press(driver: Any, selector: str) -> None:
    """Click on something that may still be on its way while the page loads."""
    from selenium.common.exceptions import ElementClickInterceptedException

    def pressed() -> bool:
        try:
            element(driver, selector).click()
        except ElementClickInterceptedException:
            return False
        return True

    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element(driver, selector))
    until(pressed)


def complaints(driver: Any) -> list[str]:
    """What the browser complained of, such as a script that the policy forbids or a request that failed."""
    return [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def pixels(driver: Any, name: str) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a canvas."""
    width, height, flat = driver.execute_script(
        f"const c = document.getElementById('{name}');"
        "return [c.width, c.height, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)];"
    )
    return np.array(flat, np.uint8).reshape(height, width, 4)[..., :3]


def saved(folder: Path, kind: str = ".png") -> Path:
    """A picture whose disc fades out, so that thresholds differ."""
    rgb = picture(PICTURE, 0).astype(np.float32)
    blurred = cv2.GaussianBlur(rgb, (0, 0), 6).round().astype(np.uint8)
    path = folder / f"disc{kind}"
    cv2.imwrite(str(path), blurred[..., ::-1])
    return path


def said(driver: Any) -> str:
    return text_of(driver, "[data-value=said]")


def move_slider(driver: Any, percent: int) -> None:
    driver.execute_script(
        "const s = document.querySelector('[name=threshold]'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input', { bubbles: true }));",
        percent,
    )


def test_a_picture_is_looked_at_and_the_slider_acts_at_once(
    browse: Callable[[], Any], app: Served, tmp_path: Path
) -> None:
    driver = browse()
    driver.get(app.address + "/")
    path = saved(tmp_path)
    element(driver, ".drop input").send_keys(str(path))
    until(lambda: said(driver) == "disc.png: 1 polyp")
    content = path.read_bytes()
    mask, probability = (
        app.post(
            "/api/segment", files={"file": content}, headers={"Accept": "image/png"}, params={"layer": layer}
        ).content
        for layer in ("mask", "probability")
    )
    expected = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE)
    edge = cv2.morphologyEx(expected, cv2.MORPH_GRADIENT, np.ones((7, 7), np.uint8))
    assert (pixels(driver, "mask")[..., 0] == expected).all()
    assert (pixels(driver, "probability")[..., 0] == cv2.imdecode(np.frombuffer(probability, np.uint8), 0)).all()
    assert (pixels(driver, "input") == cv2.imread(str(path))[..., ::-1]).all()
    marked = (pixels(driver, "contour") == (0x40, 0xFF, 0x60)).all(axis=2)
    assert marked.any()
    assert not marked[120, 96]  # an outline, not the inside
    assert not marked[edge == 0].any()
    heat = pixels(driver, "heat").astype(int)
    assert heat[120, 300, 2] > heat[120, 300, 0]  # grey wall turns blue, where nothing is probable
    assert heat[120, 96, 0] > RED[0]  # the disc becomes redder
    areas = []
    for percent in (10, 50, 90):
        move_slider(driver, percent)
        areas.append(int((pixels(driver, "mask")[..., 0] > 0).sum()))
    assert areas[0] > areas[1] > areas[2] > 0
    assert element(driver, "[name=shown]").text == "0.90"
    assert complaints(driver) == []


def test_the_page_shows_the_findings_of_the_server_at_each_threshold(browse: Callable[[], Any], tmp_path: Path) -> None:
    """On a sample image with the shipped weights: as /api/segment, and at two other thresholds as find_region."""
    sample = SAMPLE_FOLDER / SAMPLES[0]
    settings = settings_for(shipped_weights())
    segmenter = Segmenter(shipped_weights(), "cpu")
    rules = choose_rules(settings.findings, segmenter.card.threshold, segmenter.card.peak)
    with served(tmp_path / "served", settings) as app:
        files = {"file": sample.read_bytes()}
        answer = app.post("/api/segment", files=files).json()
        mask = app.post("/api/segment", files=files, headers={"Accept": "image/png"}).content
        driver = browse()
        driver.get(app.address + "/")
        element(driver, f"[data-sample$='{sample.name}']").click()
        until(lambda: element(driver, ".looked").is_displayed())
        assert element(driver, "[name=shown]").text == f"{answer['threshold']:.2f}"
        assert said(driver).startswith(f"{sample.name}: {len(answer['findings'])} polyp")
        assert differing(driver, cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE)) < 20
        image = load_image(sample)
        view, model_input = prepare_image(image, segmenter.size)
        levels = segmenter.segment([model_input])[0]
        for percent in (20, 80):
            move_slider(driver, percent)
            rules_there = replace(rules, threshold=percent / 100)
            _, outlines = find_region(levels, view, rules_there)
            assert said(driver).startswith(f"{sample.name}: {len(outlines)} polyp")
            assert differing(driver, findings_mask(levels, view, rules_there, image.shape[:2])) < 20
            assert outlines


def differing(driver: Any, expected: np.ndarray) -> int:
    """The number of pixels in which the mask differs. find_region enlarges a part of the map, which rounds a few."""
    return int((pixels(driver, "mask")[..., 0] != expected).sum())


def test_unsure_blobs_are_shown_only_when_asked_for(browse: Callable[[], Any], app: Served, tmp_path: Path) -> None:
    rgb = np.full((240, 320, 3), 90, np.uint8)
    cv2.circle(rgb, (160, 120), 40, (165, 90, 90), -1)  # probability 0.44, which no finding reaches
    path = tmp_path / "unsure.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    driver = browse()
    driver.get(app.address + "/picture")
    element(driver, ".drop input").send_keys(str(path))
    until(lambda: said(driver) == "unsure.png: no polyps")
    move_slider(driver, 30)
    assert not pixels(driver, "mask").any()
    element(driver, "[name=findings]").click()
    assert (pixels(driver, "mask")[..., 0] > 0).sum() == pytest.approx(np.pi * 40**2, rel=0.05)
    assert said(driver) == "unsure.png: no polyps"


def test_samples_other_formats_downloads_and_wrong_files(
    browse: Callable[[], Any], app: Served, tmp_path: Path
) -> None:
    driver = browse()
    driver.get(app.address + "/")
    assert len(SAMPLES) >= 3
    element(driver, "[data-sample]").click()
    until(lambda: element(driver, ".looked").is_displayed())
    assert pixels(driver, "input").shape == (576, 720, 3)
    element(driver, ".drop input").send_keys(str(saved(tmp_path, ".tiff")))  # which Chromium itself cannot show
    until(lambda: said(driver).startswith("disc.tiff: 1"))
    assert pixels(driver, "input").shape == (240, 320, 3)
    downloads = tmp_path / "downloads"
    driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    for name in ("input", "heat", "probability", "mask", "contour"):
        element(driver, f"[data-download={name}]").click()
        until(lambda name=name: (downloads / f"disc-{name}.png").is_file())  # type: ignore[misc]
    until(lambda: cv2.imread(str(downloads / "disc-mask.png")) is not None)
    assert (cv2.imread(str(downloads / "disc-mask.png")) == pixels(driver, "mask")).all()
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    element(driver, ".drop input").send_keys(str(text))
    until(lambda: said(driver).startswith("notes.txt: not an image that can be read"))
    assert not element(driver, ".looked").is_displayed()  # the one before is not taken for it


def test_a_recording_is_uploaded_processed_and_its_findings_are_jumped_to(
    browse: Callable[[], Any], app: Served, make: Callable[..., Path]
) -> None:
    driver = browse()
    driver.get(app.address + "/recordings")
    assert "There are no recordings yet" in text_of(driver, "#recordings")
    # Its times do not begin at zero, and a finding's time is the recording's own.
    clip = make(frames=100, pts=[50 + index for index in range(100)], time_base=None)
    element(driver, ".drop input").send_keys(str(clip))
    until(lambda: driver.find_elements("css selector", "tr[data-state=finished]"), 60)
    assert "1 polyp" in text_of(driver, "tbody tr")
    element(driver, "tbody a").click()
    until(lambda: driver.execute_script("return document.querySelector('video').readyState >= 1"))
    seek = "document.querySelector('video').currentTime = 4"
    driver.execute_script(seek)
    until(lambda: driver.execute_script("return document.querySelector('video').currentTime") == 4)
    press(driver, ".bar")  # in its middle
    until(lambda: at(driver) == pytest.approx(3.32, abs=0.05))
    assert element(driver, ".card").get_attribute("class") == "card chosen"
    click_at(driver, ".timeline", 0.9)
    until(lambda: at(driver) == pytest.approx(2 + 0.9 * 3.96, abs=0.05))
    until(lambda: driver.execute_script("return document.querySelector('.card img').naturalWidth") == 320)
    driver.execute_script(seek)
    element(driver, ".card h3 a").send_keys("\n")  # by keyboard
    until(lambda: driver.execute_script("return document.querySelector('video').currentTime") == 2)
    driver.execute_script(seek)
    until(lambda: abs(float(element(driver, ".head").get_attribute("style").split(":")[1].strip(" %;")) - 50) < 3)
    driver.execute_script(seek)
    element(driver, "[data-mark=biopsy]").click()
    until(lambda: text_of(driver, "[data-value=marked]") == "marked at 4.0 s: biopsy")
    report = element(driver, ".files a[target]").get_attribute("href")
    assert complaints(driver) == []
    driver.get(report)
    assert element(driver, "h1").text == "clip.mp4"
    assert text_of(driver, ".marks") == "0:00:04.0 Biopsy"
    until(lambda: driver.execute_script("return document.querySelector('.card img').naturalWidth") > 0)
    until(lambda: driver.execute_script("return document.querySelector('video').readyState >= 1"))
    press(driver, ".bar")
    assert "chosen" in element(driver, ".card").get_attribute("class")
    until(lambda: at(driver) == pytest.approx(3.32, abs=0.05))
    assert complaints(driver) == []
    element(driver, ".card > a").click()  # the snapshot beside the report
    until(lambda: driver.current_url.endswith("/files/snapshots/track-1.jpg"))
    until(lambda: driver.execute_script("return document.images[0].naturalWidth") == 320)


def at(driver: Any) -> float:
    """The time of the video in seconds."""
    return float(driver.execute_script("return document.querySelector('video').currentTime"))


def test_an_image_that_is_dropped_on_the_recordings_is_segmented_on_its_page(
    browse: Callable[[], Any], app: Served, tmp_path: Path
) -> None:
    driver = browse()
    driver.get(app.address + "/recordings")
    path = saved(tmp_path)
    element(driver, ".drop input").send_keys(str(path))
    until(lambda: said(driver) == "disc.png: 1 polyp")
    assert driver.current_url == app.address + "/picture"
    assert (pixels(driver, "input") == cv2.imread(str(path))[..., ::-1]).all()
    driver.get(app.address + "/api")
    driver.get(app.address + "/picture#dropped")  # it is handed over once
    until(lambda: driver.current_url == app.address + "/picture")
    assert said(driver) == ""
    driver.get(app.address + "/recordings")
    text = tmp_path / "notes.mp4"
    text.write_text("no recording")
    driver.execute_script("document.querySelector('.drop input').multiple = true")
    element(driver, ".drop input").send_keys(f"{path}\n{text}")
    until(lambda: said(driver).startswith("disc.png: the image page shows one image at a time"))
    until(lambda: [each["name"] for each in app.get("/api/recordings").json()] == ["notes.mp4"])
    assert complaints(driver) == []


def test_times_are_local(browse: Callable[[], Any], app: Served, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no recording")
    app.wait_for(app.send(text), "failed")
    assert re.search(r"<time datetime=\S+>[-0-9]{10} [0-9:]{5} UTC</time>", app.get("/recordings").text)
    driver = browse()
    driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Pacific/Kiritimati"})
    driver.get(app.address + "/recordings")
    local = "new Date(document.querySelector('time').dateTime).toLocaleString([], arguments[0])"
    style = {"dateStyle": "medium", "timeStyle": "short", "timeZone": "Pacific/Kiritimati"}
    expected = driver.execute_script(f"return {local}", style)
    assert text_of(driver, "time") == expected
    driver.execute_script("document.querySelector('time').same = true")
    driver.execute_script("return refresh()")  # which replaces the list only if it differs
    assert driver.execute_script("return document.querySelector('time').same") is True
    assert text_of(driver, "time") == expected


def test_annotations_and_all_files_are_downloaded(
    browse: Callable[[], Any], app: Served, make: Callable[..., Path], tmp_path: Path
) -> None:
    id_ = app.send(make(name="colon.mp4", frames=50))
    app.wait_for(id_, "finished")
    driver = browse()
    driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "got")})
    driver.get(f"{app.address}/recordings/{id_}")
    driver.find_element("link text", "Download all").click()
    until((tmp_path / "got" / "colon.zip").is_file)
    press(driver, ".annotations button")
    until((tmp_path / "got" / "colon-coco.zip").is_file, 60)
    assert text_of(driver, "[data-value=annotations]") == ""
    assert complaints(driver) == []


def test_an_error_is_a_page(browse: Callable[[], Any], app: Served) -> None:
    driver = browse()
    driver.get(app.address + "/recordings/0123456789abcdef")
    assert text_of(driver, "main h1") == "Not found"
    assert "There is no such recording." in text_of(driver, "main")
    driver.find_element("css selector", "main").find_element("link text", "Recordings").click()
    until(lambda: "There are no recordings yet" in text_of(driver, "#recordings"))


def test_a_page_shows_which_value_of_a_request_is_wrong(browse: Callable[[], Any], app: Served) -> None:
    driver = browse()
    driver.get(app.address + "/recordings")
    driver.execute_script("ask('/api/recordings/wrong').catch((error) => say(error.message))")
    until(lambda: said(driver).startswith("`id` in the address must be the ID of a recording"))


def test_an_upload_goes_on_where_the_line_broke(browse: Callable[[], Any], app: Served, tmp_path: Path) -> None:
    """Also after the page was closed; but what another one began, of the same name and size, is not gone on with."""
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(20_000_000))
    theirs = app.post("/api/uploads", json={"name": "big.mp4", "size": 20_000_000}).json()["id"]
    driver = browse()
    driver.get(app.address + "/recordings")
    driver.set_network_conditions(latency=0, download_throughput=10**7, upload_throughput=4_000_000)
    element(driver, ".drop input").send_keys(str(big))
    until(lambda: [each for each in ours(app, theirs) if each["received"] >= 8 * 2**20])
    driver.set_network_conditions(offline=True, latency=0, throughput=0)
    until(lambda: "Trying again" in text_of(driver, ".uploads"))
    driver.delete_network_conditions()
    driver.switch_to.new_window("tab")
    driver.get(app.address + "/recordings")
    element(driver, ".drop input").send_keys(str(big))
    until(lambda: ours(app, theirs)[0]["state"] == "failed", 60)  # all of it is here, and it is no recording
    assert len(ours(app, theirs)) == 1
    assert app.info(theirs)["received"] == 0


def ours(app: Served, theirs: str) -> list[dict[str, Any]]:
    return [each for each in app.get("/api/recordings").json() if each["id"] != theirs]


def test_a_recording_is_deleted_from_its_page(
    browse: Callable[[], Any], app: Served, make: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no recording")
    app.send(text, "<b>notes</b>.mp4")
    driver = browse()
    driver.get(app.address + "/recordings")
    until(lambda: driver.find_elements("css selector", "tr[data-state=failed]"))
    assert "<b>notes</b>.mp4: not a recording that can be read" in text_of(driver, "tbody tr")
    element(driver, "[data-act=delete]").click()
    driver.switch_to.alert.accept()
    until(lambda: "There are no recordings yet" in text_of(driver, "#recordings"))
    assert app.get("/api/recordings").json() == []


def test_a_recording_is_cancelled_from_its_page(
    browse: Callable[[], Any], tmp_path: Path, red_model: Path, make: Callable[..., Path]
) -> None:
    slow = settings_for(red_model, output={"video": {"preset": "placebo"}})
    with served(tmp_path / "served", slow) as app:
        id_ = app.send(make(width=640, height=480, frames=400, options={"preset": "ultrafast"}))
        driver = browse()
        driver.get(f"{app.address}/recordings/{id_}")
        until(lambda: driver.find_elements("css selector", "#state progress"))
        until(lambda: "of 400 frames" in text_of(driver, "#state"))
        element(driver, "[data-act=cancel]").click()
        until(lambda: text_of(driver, "#state") == "cancelled")
        until(lambda: driver.find_elements("css selector", "[data-act=process]"))
        element(driver, "[data-act=process]").click()
        until(lambda: driver.find_elements("css selector", "#state progress"))


def test_the_live_page_beside_the_others(
    browse: Callable[[], Any], tmp_path: Path, red_model: Path, make: Callable[..., Path]
) -> None:
    settings = settings_for(red_model, live={"max_staleness": 60.0})
    with served(tmp_path / "served", settings, f"theatre=replay:{make(frames=500)}") as app:
        driver = browse()
        driver.get(app.address + "/")
        driver.find_element("link text", "Live").click()
        until(lambda: element(driver, "[data-value=state]").text == "looking for polyps")
        assert element(driver, "nav [aria-current]").text == "Live"
        until(lambda: driver.execute_script("return document.querySelector('canvas.picture').width") == 320)
        assert complaints(driver) == []


@pytest.mark.parametrize("page", ["/", "/recordings", "/live", "/api"])
def test_pages_fit_on_a_phone_and_follow_the_system_s_colours(
    browse: Callable[[], Any], app: Served, page: str
) -> None:
    driver = browse()
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    grounds = []
    for scheme in ("dark", "light"):
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        driver.get(app.address + page)
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360  # innerWidth grows, too
        grounds.append(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(16, 18, 20)", "rgb(245, 246, 247)"]
    assert complaints(driver) == []
