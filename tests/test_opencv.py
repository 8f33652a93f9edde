"""OpenCV without a desktop: what works without it, and that all but windows works with its headless package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import call, summary_of

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
MISSING = "libGL.so.1: cannot open shared object file: No such file or directory"


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with opencv-python-headless, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("headless")
    (version,) = re.findall(r"^opencv-python-headless==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, f"opencv-python-headless=={version}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"opencv-python-headless cannot be installed here: {done.stderr[-200:]}")
    return str(folder)


@pytest.mark.slow
def test_everything_but_windows_works_with_the_headless_package(
    headless: str, tmp_path: Path, make: Callable[..., Path], red_model: Path
) -> None:
    clip, output, model = make(frames=20), tmp_path / "out", ("--model", red_model)
    call("process", clip, "-o", output, "--masks", *model, PYTHONPATH=headless)
    assert summary_of(output / "clip")["complete"]
    call("masks", clip, "--results", output, "--format", "coco", PYTHONPATH=headless)
    call("score", output / "clip", "--truth", output / "clip" / "masks.mkv", PYTHONPATH=headless)
    call("demo-video", tmp_path / "demo.mp4", "--seconds", "0.2", "--size", "320x240", PYTHONPATH=headless)
    record = ("--record", tmp_path / "r.mp4", "--serve", "127.0.0.1:0")
    shown = call("live", f"replay:{clip}", *record, *model, PYTHONPATH=headless).stdout
    assert "20 frames shown" in shown
    done = call("live", f"replay:{clip}", "--window", *model, check=False, PYTHONPATH=headless, DISPLAY=":99")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "polypstream: --window: this OpenCV has no windows (opencv-python-headless). Use --serve"
    )


@pytest.fixture
def without(tmp_path: Path) -> str:
    """A folder for PYTHONPATH whose OpenCV fails as the real one does where libGL is missing."""
    (tmp_path / "broken" / "cv2").mkdir(parents=True)
    program = f"raise ImportError({MISSING!r}, name='cv2')\n"
    (tmp_path / "broken" / "cv2" / "__init__.py").write_text(program)
    return str(tmp_path / "broken")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["process", "--help"], ["settings"], ["inspect", "shipped"]]
)
def test_what_needs_no_opencv_works_without_it(without: str, arguments: list[str]) -> None:
    assert call(*arguments, PYTHONPATH=without).stdout


@pytest.mark.parametrize("arguments", [["process", "clip.mp4"], ["live", "demo:"], ["serve"], ["bench"], ["devices"]])
def test_elsewhere_one_line_says_what_to_install(without: str, arguments: list[str]) -> None:
    done = call(*arguments, check=False, PYTHONPATH=without)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"OpenCV cannot be loaded ({MISSING})" in line
    assert "apt-get install libgl1 libglib2.0-0 libxcb1" in line
    assert "pip install opencv-python-headless" in line


def test_the_python_api_says_the_same(without: str, tmp_path: Path) -> None:
    program = "import polypstream as pp\ntry: pp.Detector\nexcept pp.errors.MissingExtra as error: print(error)"
    environment = os.environ | {"PYTHONPATH": without}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "OpenCV cannot be loaded" in done.stdout, done.stderr
