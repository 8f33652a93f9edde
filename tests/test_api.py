"""The public Python API: its results are those of the command, and its documentation is true."""

from __future__ import annotations

import doctest
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import polypstream as pp
from polypstream.api import Detector
from polypstream.core.frame import Frame
from polypstream.errors import (
    DataError,
    MissingExtra,
    OutputError,
    ProviderError,
    ResultsExist,
    SettingsError,
    SourceError,
)
from polypstream.sources.recording import Recording
from tests.conftest import Clip, call, frames_of, picture

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def colon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with colon.mp4, image.jpg (a frame of it) and results/colon."""
    folder = tmp_path_factory.mktemp("colon")
    call("demo-video", folder / "colon.mp4", "--seconds", 3, "--size", "320x180")
    call("process", folder / "colon.mp4", "--output", folder / "results", "--masks")
    rgb = frames_of(folder / "colon.mp4", "rgb24")[30]
    Image.fromarray(rgb).save(folder / "image.jpg", quality=95)
    return folder


def test_frames_are_those_of_the_command(colon: Path) -> None:
    run = pp.load_run(colon / "results" / "colon")
    outlines, masks = run.outlines(), frames_of(colon / "results" / "colon" / "masks.mkv", "gray")
    count = 0
    for frame, mask in zip(Detector().track(colon / "colon.mp4"), masks, strict=True):
        assert frame.index == count
        assert frame.seconds == pytest.approx(run.frames["pts_s"][count], abs=1e-6)
        assert (frame.mask == (mask > 127)).all()
        measured = [finding.confidence for finding in frame.findings if not finding.carried]
        highest = max(frame.levels.max() / 255, *measured, 0)
        assert highest == pytest.approx(run.frames["max_probability"][count], abs=1e-4)
        assert tuple(sorted({each.track_id for each in frame.findings if each.track_id})) == run.frames["tracks"][count]
        assert frame.quality.blurred == run.frames["blurred"][count]
        carried = {each.track_id for each in frame.findings if each.carried}
        assert len(carried) == run.frames["carried"][count]
        for outline in outlines.get(count, []):
            assert outline.carried == (outline.track_id in carried)
            ours = [each for each in frame.findings if each.track_id == outline.track_id]
            assert max(each.confidence for each in ours) == pytest.approx(outline.probability, abs=1e-4)
            drawn = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [each.polygon for each in ours], 1)
            differs = drawn != outline.mask(mask.shape[1], mask.shape[0]) // 255
            edge = cv2.morphologyEx(drawn, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
            assert not differs[edge == 0].any()  # findings.json has corners moved by up to a pixel
        count += 1
    assert count == 75
    assert outlines


def test_process_writes_what_the_command_writes(colon: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    run = pp.process(colon / "colon.mp4", tmp_path, masks=True, on_progress=lambda *of: told.append(of))
    theirs = colon / "results" / "colon"
    assert run.folder == tmp_path / "colon"
    for name in ("frames.csv", "annotated.mp4"):
        assert (run.folder / name).read_bytes() == (theirs / name).read_bytes(), name
    masks = [frames_of(folder / "masks.mkv", "gray") for folder in (run.folder, theirs)]
    assert all((ours == other).all() for ours, other in zip(*masks, strict=True))
    findings = [json.loads((folder / "findings.json").read_text()) for folder in (run.folder, theirs)]
    assert findings[0] == findings[1]
    assert told[-1] == (75, 75)
    with pytest.raises(ResultsExist) as refused:
        pp.process(colon / "colon.mp4", tmp_path)
    assert str(refused.value) == f"{run.folder}: holds results already; pass overwrite=True to replace them"


def test_a_run_is_read_back(colon: Path) -> None:
    run = pp.load_run(colon / "results" / "colon")
    (track,) = run.tracks
    assert track.frames == len(track.outlines) == sum(run.frames["polyp_count"])
    assert track.snapshot.is_file()
    assert track.first_s == track.outlines[0].seconds
    assert run.summary["complete"] is True
    shapes = {name: (column.dtype.kind, column.shape) for name, column in run.frames.items()}
    assert shapes == {
        "frame": ("i", (75,)),
        "pts_s": ("f", (75,)),
        "polyp_count": ("i", (75,)),
        "polyp_area_fraction": ("f", (75,)),
        "max_probability": ("f", (75,)),
        "tracks": ("O", (75,)),
        "blurred": ("b", (75,)),
        "overexposed": ("b", (75,)),
        "outside": ("b", (75,)),
        "segmented": ("b", (75,)),
        "carried": ("i", (75,)),
    }


def test_an_image_may_be_a_path_a_pillow_image_or_an_array(red_model: Path, tmp_path: Path) -> None:
    rgb, detector = picture(Clip(), 0), Detector(red_model)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(rgb)).save(tmp_path / "turned.png", exif=exif)
    expected = detector(rgb)
    assert expected.mask.any()
    assert expected.findings
    for image in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(rgb), tmp_path / "turned.png"):
        result = detector(image)
        assert (result.image == rgb).all()
        assert (result.mask == expected.mask).all()
    with Image.open(tmp_path / "turned.png") as turned:
        assert (detector(turned).mask == expected.mask).all()
        assert turned.size == (rgb.shape[0], rgb.shape[1])  # the caller's image is as it was
    assert (detector(np.asfortranarray(rgb)).mask == expected.mask).all()


def test_markers_are_drawn_on_a_copy(red_model: Path) -> None:
    rgb = picture(Clip(), 0)
    result = Detector(red_model)(rgb)
    plotted = result.plot()
    assert (result.image == rgb).all()
    changed = (plotted != rgb).any(axis=2)
    assert changed[result.mask].mean() > 0.99
    near = cv2.dilate(result.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert not changed[~near].any()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("missing.jpg", "missing.jpg: no such file"),
        (
            np.zeros((4, 4, 3), np.float32),
            "expected uint8 RGB [H, W, 3], got float32 [4, 4, 3]; for values from 0 to 1 pass",
        ),
        (
            np.zeros((4, 4), np.uint8),
            "expected uint8 RGB [H, W, 3], got uint8 [4, 4]; for a grey image pass numpy.stack(",
        ),
        (np.zeros((4, 4, 1), np.uint8), "got uint8 [4, 4, 1]; for a grey image pass image.repeat("),
        (np.zeros((4, 4, 4), np.uint8), "got uint8 [4, 4, 4]; for an RGBA image pass image[..., :3]"),
        (np.zeros((0, 4, 3), np.uint8), "got uint8 [0, 4, 3]"),
        (7, "expected a path, a Pillow image or an array, got int"),
    ],
)
def test_a_wrong_image_is_said(red_model: Path, image: object, said: str) -> None:
    with pytest.raises(SourceError, match=re.escape(said)):
        Detector(red_model)(image)  # type: ignore[arg-type]


def test_a_file_that_is_no_image_is_named(red_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(SourceError, match=r"text\.jpg: not an image"):
        Detector(red_model)(tmp_path / "text.jpg")


def test_arguments_go_before_settings(red_model: Path) -> None:
    settings = pp.load_settings(overrides=["inference.provider=openvino", "inference.model=missing.onnx"])
    detector = Detector(red_model, "cpu", settings)
    assert detector.provider == "cpu"
    assert detector.card.model_name == "red"
    with pytest.raises(ProviderError, match="gpu: not one of"):
        Detector(red_model, "gpu")
    with pytest.raises(SettingsError, match=r"findings\.smalest.*did you mean findings\.smallest"):
        pp.load_settings(overrides=["findings.smalest=1"])


def test_ending_early_ends_the_threads(make: Callable[..., Path], red_model: Path) -> None:
    before = threading.active_count()
    frames = Detector(red_model).track(make(frames=200))
    assert [next(frames).index, next(frames).index] == [0, 1]
    frames.close()
    frames.close()
    assert threading.active_count() == before
    assert list(frames) == []
    with Detector(red_model).track(make(frames=5)) as untouched:
        assert untouched.expected_frames == 5
    assert threading.active_count() == before


def test_a_slow_caller_bounds_what_waits(
    make: Callable[..., Path], red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, frames_of_recording = 0, Recording.frames

    def counted(recording: Recording) -> Iterator[Frame]:
        nonlocal decoded
        for frame in frames_of_recording(recording):
            decoded += 1
            yield frame

    monkeypatch.setattr(Recording, "frames", counted)
    frames = Detector(red_model).track(make(frames=300))
    next(frames)
    threading.Event().wait(1.0)
    assert decoded < 60
    assert sum(1 for _ in frames) == 299
    assert decoded == 300


def test_a_damaged_recording_ends_early_and_says_so(
    make: Callable[..., Path], red_model: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    whole = make(frames=100)
    cut = tmp_path / "cut.mp4"
    shutil.copy(make(frames=100, container_options={"movflags": "frag_keyframe+empty_moov"}), cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    frames = Detector(red_model).track(cut)
    with caplog.at_level(logging.WARNING, "polypstream"):
        count = sum(1 for _ in frames)
    assert 0 < count < 100
    assert frames.damage
    assert any(str(cut) in record.getMessage() and "damaged" in record.getMessage() for record in caplog.records)
    with pytest.raises(SourceError, match=r"missing\.mp4: no such file"):
        Detector(red_model).track(whole.with_name("missing.mp4"))


def test_an_error_in_the_pipeline_reaches_the_caller(
    make: Callable[..., Path], red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(red_model)
    monkeypatch.setattr(type(detector._segmenter), "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(detector.track(make(frames=20)))


def test_supervision_gets_boxes_masks_and_tracks(red_model: Path, make: Callable[..., Path]) -> None:
    pytest.importorskip("supervision")
    result = Detector(red_model)(picture(Clip(), 0))
    detections = result.to_supervision()
    assert len(detections) == len(result.findings) > 0
    left, top, width, height = result.findings[0].box
    assert detections.xyxy[0].tolist() == [left, top, left + width, top + height]
    assert (detections.mask.any(axis=0) == result.mask).all()
    assert detections.tracker_id is None
    tracked = [frame.to_supervision() for frame in Detector(red_model).track(make(frames=20)) if frame.findings]
    assert tracked
    assert all(each.tracker_id.tolist() == [1] for each in tracked)
    assert len(Detector(red_model)(np.zeros((64, 64, 3), np.uint8)).to_supervision()) == 0


def test_without_supervision_it_says_what_to_install(red_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtra, match="pip install supervision"):
        Detector(red_model)(picture(Clip(), 0)).to_supervision()


def test_importing_is_light_and_names_are_listed() -> None:
    script = (
        "import sys, polypstream as pp; heavy = {'torch', 'onnxruntime', 'cv2', 'av', 'fastapi'} & set(sys.modules);"
        "assert not heavy, heavy; missing = [name for name in pp.__all__ if not hasattr(pp, name)]; print(missing);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(pp.__all__) <= set(dir(pp))
    with pytest.raises(AttributeError, match="nothing"):
        _ = pp.nothing


def test_folders_of_the_same_names_beside_a_script_do_no_harm(tmp_path: Path, red_model: Path) -> None:
    for name in ("models", "stream", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this is not polypstream')")
    (tmp_path / "stream.py").write_text("raise RuntimeError('this is not polypstream')")
    script = (
        "import numpy, polypstream as pp; print(len(pp.Detector()(numpy.zeros((64, 64, 3), numpy.uint8)).findings))"
    )
    (tmp_path / "script.py").write_text(script)
    for command, printed in (
        (["script.py"], "0"),
        (["-m", "polypstream", "--version"], f"polypstream {pp.__version__}"),
    ):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == printed


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


def test_the_guides_examples_run_and_print_what_it_says(colon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(colon)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    names: dict[str, object] = {}
    printed = ""
    for language, content in blocks((DOCS / "python.md").read_text()):
        if language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(content, "docs/python.md", "exec"), names)
            printed = out.getvalue()
        else:
            assert language == "text"
            assert printed == content
    assert (colon / "marked.png").is_file()


@pytest.mark.parametrize("name", [name for name in pp.__all__ if name not in ("errors", "__version__")])
def test_the_examples_in_docstrings_are_true(name: str, colon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(colon)
    found = doctest.DocTestFinder(exclude_empty=True).find(getattr(pp, name), name, module=False, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in found:
        runner.run(test)
    assert runner.summarize().failed == 0
    if name not in ("Settings", "Finding", "TrackSummary", "FrameResults"):  # they are shown by what returns them
        assert any(test.examples for test in found), f"{name}: no example"


def test_an_address_and_a_folder_are_no_files(tmp_path: Path) -> None:
    detector = Detector()
    with pytest.raises(SourceError, match=r"rtsp://host/room: is a live stream; use `polypstream live"):
        detector.track("rtsp://host/room")
    with pytest.raises(SourceError, match="is a folder, not an image"):
        detector(tmp_path)


def test_what_a_function_is_not_for_says_which_is(colon: Path) -> None:
    image = colon / "image.jpg"
    for function in (Detector().track, lambda recording: pp.process(recording, colon / "unused")):
        with pytest.raises(SourceError, match=r"is a folder; pass one recording\. .*detector\(image\).*polyps\.csv"):
            function(colon)
        with pytest.raises(SourceError, match=r"image\.jpg: is an image; pass it to a Detector: detector\('.*\.jpg'\)"):
            function(image)
    assert not (colon / "unused").exists()
    with pytest.raises(DataError, match=r"colon\.mp4: is a recording; give the folder of its .*results/colon$"):
        pp.load_run(colon / "colon.mp4")
    found = colon / "results" / "colon" / "findings.json"
    with pytest.raises(DataError, match=f"is a file; give the folder of its results, for instance {found.parent}$"):
        pp.load_run(found)


def test_messages_in_python_name_no_option_of_the_command_line(colon: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(colon / "results" / "colon", tmp_path / "colon"))
    (copy / "reviews.sqlite").touch()
    with pytest.raises(OutputError, match="choose another output folder") as reviewed:
        pp.process(colon / "colon.mp4", tmp_path, overwrite=True)
    with pytest.raises(SettingsError, match=r"^overlay\.opacity=2: ") as setting:
        pp.load_settings(overrides=["overlay.opacity=2"])
    assert not any("--" in str(error.value) for error in (reviewed, setting))
