"""The fastest provider of a CPU is measured once, and remembered."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from polypstream.errors import ProviderError
from polypstream.inference import cpu, segmenter
from polypstream.inference.cpu import Measurement, describe_cpu, fastest_first, measure
from polypstream.inference.providers import Provider, SessionSettings, probe
from polypstream.inference.segmenter import Segmenter
from tests.conftest import make_red_model

needs_openvino = pytest.mark.skipif(probe("openvino") is not None, reason="needs OpenVINO's plug-in")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "polypstream"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Measurement]:
    """What the next measurements give; each is used once."""
    answers: list[Measurement] = []
    monkeypatch.setattr(cpu, "measure", lambda models, threads: answers.pop(0))
    return answers


def steady(openvino: float, cpu: float) -> Measurement:
    return Measurement({"openvino": openvino, "cpu": cpu}, steady=True)


def disturbed(openvino: float, cpu: float) -> Measurement:
    return Measurement({"openvino": openvino, "cpu": cpu}, steady=False)


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
    red_model: Path, tmp_path: Path, cache: Path, measured: list[Measurement]
) -> None:
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [steady(9, 3), steady(2, 3), steady(1, 3)]
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

    def measure_while_another_one_does(*_: object) -> Measurement:
        monkeypatch.setattr(cpu, "measure", lambda *_: steady(5, 4))
        assert fastest_first(models, 0) == ["cpu", "openvino"]
        return steady(4, 5)

    monkeypatch.setattr(cpu, "measure", measure_while_another_one_does)
    assert fastest_first(models, 0) == ["cpu", "openvino"]
    assert len(list(cache.iterdir())) == 1


def test_a_disturbed_measurement_is_repeated_at_the_next_starts(
    red_model: Path, cache: Path, measured: list[Measurement]
) -> None:
    """The fastest run of all counts; a third disturbed measurement is the last one."""
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [disturbed(9, 6), disturbed(5, 8), disturbed(7, 4)]
    assert [fastest_first(models, 0)[0] for _ in range(4)] == ["cpu", "openvino", "cpu", "cpu"]
    measured += [disturbed(9, 6), steady(5, 8)]
    assert [fastest_first(models, 1)[0] for _ in range(3)] == ["cpu", "openvino", "openvino"]
    assert measured == []
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"milliseconds": {"cpu": 3}}',
        '{"milliseconds": 3}',
        '{"milliseconds": {"openvino": 9, "cpu": 3}}',
    ],
)
def test_a_damaged_file_is_measured_again(
    red_model: Path, cache: Path, measured: list[Measurement], damage: str
) -> None:
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [steady(9, 3), steady(2, 3)]
    fastest_first(models, 0)
    next(cache.iterdir()).write_text(damage)
    for _ in range(2):
        assert fastest_first(models, 0) == ["openvino", "cpu"]


def test_without_a_cache_it_is_measured_each_time(red_model: Path, cache: Path, measured: list[Measurement]) -> None:
    cache.parent.write_text("no folder")
    models: dict[Provider, Path] = {"openvino": red_model, "cpu": red_model}
    measured += [steady(9, 3)] * 2
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
    found = measure({"cpu": red_model}, 1).milliseconds["cpu"]
    assert 0 < found * cpu.ROUNDS / 1000 <= time.perf_counter() - begin


def test_runs_of_very_different_length_are_a_disturbed_measurement(
    red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SECONDS", 0)
    for lengths, calm in (([20.0, 21.0, 90.0], True), ([20.0, 60.0, 40.0], False)):
        times = iter(lengths)
        monkeypatch.setattr(cpu, "_milliseconds", lambda *_, times=times: next(times))
        assert measure({"cpu": red_model}, 1) == Measurement({"cpu": 20.0}, calm)
