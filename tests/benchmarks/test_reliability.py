"""The scripts of docs/reliability.md, with few cases: they find nothing, go on where they were, and see faults."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import call

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def campaign(name: str, folder: Path, *options: object, code: int = 0) -> list[dict[str, Any]]:
    """Run a script; the lines of its results."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), str(folder), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, start_new_session=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(folder) in str(each.info["cmdline"])]
    assert not list(folder.glob("work-*"))
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_fuzz_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    first = campaign("fuzz", tmp_path, "--cases", 2)
    assert [line["kind"] for line in first] == ["mp4-h264", "mp4-hevc"]
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"seed": 1, "case": 2, "ki')
    lines = campaign("fuzz", tmp_path, "--cases", 3)
    assert lines[:2] == first
    assert [line["case"] for line in lines] == [0, 1, 2]
    assert not any(line["faults"] for line in lines)


def test_cases_are_the_same_ones_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = module("fuzz", monkeypatch)
    data = bytes(range(256)) * 40
    for damage in fuzz.DAMAGE.values():
        one, again, other = (damage(fuzz.Random(seed), data) for seed in ("1 5", "1 5", "1 6"))
        assert one == again
        assert one not in (data, other)


@pytest.mark.parametrize("spoilt", ["annotated.mp4", "frames.csv", "findings.json", "polyps.csv", "report.html"])
def test_results_that_are_not_what_they_say_are_found(
    tmp_path: Path, make, red_model: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    shared = module("campaign", monkeypatch)
    call("process", make(frames=10), "--output", tmp_path, "--model", red_model, "--masks")
    assert not shared.faults_of_results(tmp_path / "clip", complete=True)
    content = (tmp_path / "clip" / spoilt).read_bytes()
    (tmp_path / "clip" / spoilt).write_bytes(content[: len(content) // 2])
    assert shared.faults_of_results(tmp_path / "clip")


def test_what_fuzz_calls_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = module("fuzz", monkeypatch)
    row = {"state": "failed", "problem": "", "folder": "", "seconds": "", "frames": ""}

    def faults(problem: str) -> list[str]:
        return fuzz.judge(row | {"problem": problem}, [])["faults"]

    assert not faults("a.mp4: not a recording")
    assert faults("a.mp4: the process that read it died (SIGSEGV)")
    assert faults("a.mp4: nothing moved in it for 60 seconds, so it was ended")
    assert faults("a.mp4: cannot be processed (KeyError: 5)")
    assert faults("a.mp4: a fault of polypstream, please report it (KeyError: 5)")
    assert faults("results/a/annotated.mp4: cannot be written (Invalid argument)")
    assert fuzz.judge(None, [])["faults"]


def test_kill_leaves_nothing_unplayable(tmp_path: Path) -> None:
    lines = campaign("kill", tmp_path, "--cases", 3, "--kinds", "process,serve,live")
    assert [line["kind"] for line in lines] == ["process", "serve", "live"]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    lines = campaign("full_disk", tmp_path, "--cases", 3, "--kinds", "process,serve,live", "--seconds", 4)
    assert [line["kind"] for line in lines] == ["process", "serve", "live"]


def test_hostile_uploads_change_nothing_of_others(tmp_path: Path) -> None:
    kinds = ("hostile_name", "reference", "pieces_out_of_order", "deleted", "image_set", "huge_picture", "wrong_token")
    lines = campaign("uploads", tmp_path, "--cases", 7, "--first", 700, "--kinds", ",".join(kinds))
    assert [line["case"] for line in lines] == list(range(700, 707))
    assert {line["kind"] for line in lines} == set(kinds)


def test_what_uploads_calls_a_fault(tmp_path: Path, red_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = module("attacked", monkeypatch)
    with attacked.attacked(tmp_path, red_model) as server:
        server.protect()
        assert not server.tidy()
        monkeypatch.setattr(attacked, "TIDY_S", 0.1)
        (tmp_path / "temporary" / "left").touch()
        assert server.tidy() == ["files left, missing or changed: temporary/left"]
        with pytest.raises(attacked.Fault, match="it tells"):
            server.expect_no_secret("a recording", f"{tmp_path}/kept/recordings: cannot be read")
        with pytest.raises(attacked.Fault, match="500"):
            server.check("GET /", attacked.Answer(500, b"Internal Server Error"))
        with pytest.raises(attacked.Fault, match="it says"):
            server.check("GET /", attacked.Answer(404, b"not found"))
        server.running.process.kill()
        server.running.process.wait()
        assert server.tidy()[0].startswith("the server has ended with -9")


@pytest.mark.realtime
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_a_short_soak_accounts_for_every_frame(tmp_path: Path) -> None:
    lines = campaign("soak", tmp_path, "--minutes", 0.5)
    *samples, end = lines
    assert len(samples) == 6
    assert samples[-1]["frames_in"] >= samples[-1]["shown"] > 0
    assert end["returns"] >= 4
    assert not end["faults"]


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)
