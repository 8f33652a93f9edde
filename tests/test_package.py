"""The installed package: one import name, and all files that the program needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    folder, sources = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources") / "polypstream"
    # Of a copy: setuptools leaves what it built in the sources, and would pack it again next time.
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "results", "runs")
    shutil.copytree(ROOT, sources, symlinks=True, ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("needs a package index, to build with setuptools")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_nothing_else_is_installed_than_polypstream(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"polypstream"}
    here = {path.relative_to(ROOT / "stream") for path in (ROOT / "stream").rglob("*.py")}
    assert {f"polypstream/{path.as_posix()}" for path in here} <= set(names)
    models = {"polypstream/inference/nv12.onnx", "polypstream/models/weights/sa_unet.onnx"}
    assert {"polypstream/py.typed", *models} <= set(names)


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "polypstream", *arguments]
        environment = os.environ | {"PYTHONPATH": str(target)}
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("settings") == (ROOT / "config.yaml").read_text()
    run("process", "demo:?seconds=1&size=320x240", "--output", "results")
    assert (elsewhere / "results" / "demo-seed1" / "annotated.mp4").is_file()
    where = subprocess.run(
        [sys.executable, "-c", "import polypstream; print(polypstream.__file__)"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(target))
