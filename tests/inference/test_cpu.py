"""The fastest provider of a CPU is measured once, and remembered."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from polypstream.errors import ProviderError
from polypstream.inference import cpu, segmenter
from polypstream.inference.cpu import describe_cpu, fastest_first, measure
from polypstream.inference.providers import Provider, SessionSettings, probe
from polypstream.inference.segmenter import Segmenter
from tests.conftest import make_red_model

needs_openvino = pytest.mark.skipif(probe("openvino") is not None, reason="needs OpenVINO's plug-in")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "polypstream"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[Provider, float]]:
    """What the next measurements give; each is used once."""
    answers: list[dict[Provider, float]] = []
    monkeypatch.setattr(cpu, "measure", lambda models, threads: answers.pop(0))
    return answers


@needs_openvino
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("slow", ["openvino", "cpu"])
def test_auto_takes_what_was_faster(red_model: Path, monkeypatch: pytest.MonkeyPatch, slow: Provider) -> None:
    """One of two real sessions answers later."""
    real = cpu.open_session

    class Slow:
        def __init__(self, session: Any) -> None:
            self.get_inputs, self._run = session.get_inputs, session.run

        def run(self, *arguments: Any) -> Any:
            time.sleep(0.03)
            return self._run(*arguments)

    def opened(model: Path, provider: Provider, settings: SessionSettings) -> Any:
        session = real(model, provider, settings)
        return Slow(session) if provider == slow else session

    monkeypatch.setattr(cpu, "open_session", opened)
    monkeypatch.setattr(segmenter, "choose", lambda wanted: (["openvino", "cpu"], []))
    assert {Segmenter(red_model).provider, slow} == {"openvino", "cpu"}


def test_it_is_measured_once_for_each_model_and_number_of_threads(
    red_model: Path, tmp_path: Path, cache: Path, measured: list[dict[Provider, float]]
) -> None:
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [{"openvino": 9, "cpu": 3}, {"openvino": 2, "cpu": 3}, {"openvino": 1, "cpu": 3}]
    for _ in range(2):
        assert fastest_first(models, 0) == ["cpu", "openvino"]
    assert fastest_first(models, 1) == ["openvino", "cpu"]
    other = make_red_model(tmp_path / "other.onnx", size=96)
    assert fastest_first({**models, "cpu": other}, 0) == ["openvino", "cpu"]
    assert measured == []
    files = [json.loads(path.read_text()) for path in cache.iterdir()]
    assert len(files) == 3
    assert all(file["conditions"]["cpu"] == describe_cpu() for file in files)


def test_of_two_that_measure_at_once_the_first_one_decides(
    red_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two processes that work on one recording could give different results."""
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}

    def measure_while_another_one_does(*_: object) -> dict[Provider, float]:
        monkeypatch.setattr(cpu, "measure", lambda *_: {"openvino": 5.0, "cpu": 4.0})
        assert fastest_first(models, 0) == ["cpu", "openvino"]
        return {"openvino": 4.0, "cpu": 5.0}

    monkeypatch.setattr(cpu, "measure", measure_while_another_one_does)
    assert fastest_first(models, 0) == ["cpu", "openvino"]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"milliseconds": {"cpu": 3}}', '{"milliseconds": 3}'])
def test_a_damaged_file_is_measured_again(
    red_model: Path, cache: Path, measured: list[dict[Provider, float]], damage: str
) -> None:
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [{"openvino": 9, "cpu": 3}, {"openvino": 2, "cpu": 3}]
    fastest_first(models, 0)
    next(cache.iterdir()).write_text(damage)
    for _ in range(2):
        assert fastest_first(models, 0) == ["openvino", "cpu"]


def test_without_a_cache_it_is_measured_each_time(
    red_model: Path, cache: Path, measured: list[dict[Provider, float]]
) -> None:
    cache.parent.write_text("no folder")
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [{"openvino": 9, "cpu": 3}] * 2
    for _ in range(2):
        assert fastest_first(models, 0) == ["cpu", "openvino"]


@pytest.mark.usefixtures("cache")
def test_a_provider_that_cannot_run_the_model_is_said_and_left(
    red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = segmenter.open_session

    def opened(model: Path, provider: Provider, *rest: SessionSettings) -> Any:
        if provider == "openvino":
            raise ProviderError("inference.provider openvino cannot run it")
        return real(model, provider, *rest)

    monkeypatch.setattr(cpu, "open_session", opened)
    monkeypatch.setattr(segmenter, "open_session", opened)
    monkeypatch.setattr(segmenter, "choose", lambda wanted: (["openvino", "cpu"], []))
    chosen = Segmenter(red_model)
    assert chosen.provider == "cpu"
    assert chosen.notes == ["inference.provider openvino cannot run it; the next best is used"]


def test_milliseconds_are_those_of_one_image(red_model: Path) -> None:
    begin = time.perf_counter()
    found = measure({"cpu": red_model}, 1)["cpu"]
    assert 0 < found * cpu.ROUNDS / 1000 <= time.perf_counter() - begin
