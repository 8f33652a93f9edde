"""The whole web application at work, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from polypstream.core.config import Settings
from polypstream.jobs.setup import make_segmenter
from polypstream.web.serve import serve


@dataclass
class Served:
    """An application that can be asked.

    Attributes:
        address: without the slash at the end.
        folder: of its uploads.
    """

    address: str
    folder: Path

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=30, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(self.address + path, timeout=30, **options)

    def send(self, recording: Path, name: str | None = None) -> str:
        """Upload a recording in one request; its id."""
        with recording.open("rb") as file:
            answer = self.post("/api/recordings", files={"file": (name or recording.name, file)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def send_images(self, images: Sequence[Path], name: str = "views") -> str:
        """Upload a set of images; its id."""
        announced = [{"name": image.name, "size": image.stat().st_size} for image in images]
        answer = self.post("/api/image-sets", json={"name": name, "images": announced})
        assert answer.status_code == 201, answer.text
        id_, body = str(answer.json()["id"]), b"".join(image.read_bytes() for image in images)
        answer = requests.patch(f"{self.address}/api/uploads/{id_}?offset=0", data=body, timeout=30)
        assert answer.json()["state"] == "waiting", answer.text
        return id_

    def info(self, id_: str) -> dict[str, Any]:
        answer = self.get(f"/api/recordings/{id_}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for(self, id_: str, *states: str, seconds: float = 60) -> dict[str, Any]:
        """A recording once it is in one of these states."""
        until(lambda: self.info(id_)["state"] in states, seconds)
        return self.info(id_)


def settings_for(model: Path, **sections: dict[str, Any]) -> Settings:
    """Settings with a model on the plain CPU provider."""
    return Settings.model_validate({"inference": {"model": str(model), "provider": "cpu"}} | sections)


@contextmanager
def served(folder: Path, settings: Settings, *sources: str, token: str | None = None) -> Iterator[Served]:
    """The application on a port of its own."""
    with serve(folder, sources, make_segmenter(settings), settings, "127.0.0.1", 0, token) as address:
        yield Served(address.partition("?")[0].rstrip("/"), folder)


def until(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def click_at(driver: Any, selector: str, place: float) -> None:
    """Click on an element at a share of its width from the left, and at half of its height."""
    from selenium.webdriver import ActionChains

    element = driver.find_element("css selector", selector)
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
    width = driver.execute_script("return arguments[0].getBoundingClientRect().width", element)
    ActionChains(driver).move_to_element_with_offset(element, round((place - 0.5) * width), 0).click().perform()
