"""DICOM in and out, with real objects, read back by pydicom and highdicom and judged by dciodvfy."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HEVCMP51,
    MPEG2MPML,
    MPEG4HP41,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    VideoEndoscopicImageStorage,
    generate_uid,
)

from polypstream.core.config import Settings
from polypstream.errors import DataError, SourceError
from polypstream.jobs.dicom import write_dicom
from polypstream.jobs.results import Outline, Run, TrackSummary, best_outlines, load_run
from polypstream.sources.open import open_source
from tests.conftest import audio_packets_of, call, frames_of, pts_of, summary_of

pytestmark = pytest.mark.slow

FAST = ("--set", "inference.provider=cpu", "--set", "inference.threads=1")
PATIENT = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Jürgen",
    "PatientID": "4711",
    "PatientBirthDate": "19610203",
    "PatientSex": "O",
    "StudyInstanceUID": generate_uid(),
    "StudyDate": "20240506",
    "StudyTime": "070809",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Größe^Ärztin",
}


# Helpers


def store(path: Path, fragments: list[bytes], syntax: str = MPEG4HP41, **attributes: Any) -> Path:
    """Write a DICOM object with encapsulated pixel data of one frame, none if there are no fragments."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = VideoEndoscopicImageStorage, generate_uid()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    if fragments:
        pieces = [piece + b"\0" * (len(piece) % 2) for piece in fragments]
        dataset.PixelData = encapsulate(pieces, fragments_per_frame=1)
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    return path


def as_dicom(video: Path, **attributes: Any) -> Path:
    """A video as a DICOM video object beside it, in two fragments, under a name that says nothing."""
    data = video.read_bytes()
    return store(video.with_name("IM0001"), [data[:1000], data[1000:]], **attributes)


def process(recording: Path | str, output: Path, model: Path, *options: object) -> Path:
    """Process a recording with the red model; returns the run's folder."""
    call("process", "--output", output, "--model", model, *FAST, *options, "--", recording)
    return output / (Path(recording).stem)


def objects_of(run: Path, track: int = 1) -> tuple[Dataset, highdicom.seg.Segmentation]:
    """Capture and segmentation of a track."""
    capture = pydicom.dcmread(run / "dicom" / f"track-{track}-capture.dcm")
    return capture, highdicom.seg.segread(run / "dicom" / f"track-{track}-segmentation.dcm")


def rgb_of(video: Path, frame: int, height: int) -> np.ndarray:
    """A frame by the ffmpeg program, untagged pictures taken as what their size means."""
    matrix = "bt709" if height >= 720 else "bt601"
    choice = f"select=eq(n\\,{frame}),scale=in_color_matrix={matrix}:in_range=limited"
    command = ["ffmpeg", "-v", "error", "-i", video, "-vf", choice, "-frames:v", "1", "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(height, -1, 3)


def judge(folder: Path) -> None:
    """dciodvfy has no error to tell of any object in a folder."""
    if not shutil.which("dciodvfy"):
        pytest.skip("needs dciodvfy, of dicom3tools")
    paths = sorted(folder.glob("*.dcm"))
    assert paths
    for path in paths:
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert "SCImage" in said or "Segmentation" in said, said
        assert not [line for line in said if line.startswith("Error")], (path, said)


def run_of(*rows: tuple[int, int, float, int]) -> Run:
    """A run with a square outline for each (track, frame, probability, side in pixels)."""
    tracks: dict[int, list[Outline]] = {}
    for track, frame, probability, side in rows:
        square = np.array([(0, 0), (side, 0), (side, side), (0, side)], np.int32)
        tracks.setdefault(track, []).append(Outline(track, frame, 0.0, probability, [square]))
    listed = [
        TrackSummary(track, 0.0, 0.0, 0.0, len(outlines), 1.0, 1.0, 0.1, Path(), 0.0, outlines)
        for track, outlines in tracks.items()
    ]
    return Run(Path("run"), {}, listed, Settings())


# Reading


@pytest.mark.slow
def test_a_dicom_video_is_processed_like_the_video_in_it(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    video = make(audio=["aac"])
    (tmp_path / "tmp").mkdir()
    (plain, dicom), here = (video, as_dicom(video)), str(tmp_path / "tmp")
    expected = process(plain, tmp_path / "results", red_model, "--masks")
    call("process", "--output", tmp_path / "results", "--model", red_model, *FAST, "--masks", "--", dicom, TMPDIR=here)
    found = tmp_path / "results" / "IM0001"
    assert (found / "frames.csv").read_text() == (expected / "frames.csv").read_text()
    assert np.array_equal(frames_of(found / "masks.mkv", "gray"), frames_of(expected / "masks.mkv", "gray"))
    assert len(pts_of(found / "annotated.mp4")) == 30
    assert pts_of(found / "annotated.mp4") == pts_of(video)
    assert audio_packets_of(found / "annotated.mp4") == audio_packets_of(expected / "annotated.mp4")
    assert audio_packets_of(found / "annotated.mp4")[0]
    assert summary_of(found)["input"] == str(dicom)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "codec", "syntax"), [("clip.ts", "mpeg2video", MPEG2MPML), ("clip.mp4", "libx265", HEVCMP51)]
)
def test_mpeg2_and_hevc(make: Callable[..., Path], name: str, codec: str, syntax: str) -> None:
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    video = make(name=name, codec=codec, options=options)
    source = open_source(str(store(video.with_suffix(".dcm"), [video.read_bytes()], syntax)))
    pictures = [frame.picture.to_ndarray(format="rgb24") for frame in source.frames()]
    source.close()
    assert np.array_equal(pictures, frames_of(video, "rgb24"))


@pytest.mark.parametrize(
    ("attributes", "rate"),
    [
        ({"CineRate": 50}, Fraction(50)),
        ({"FrameTime": "40.04", "CineRate": 30}, Fraction(25000, 1001)),
        ({"RecommendedDisplayFrameRate": 10}, Fraction(10)),
        ({"FrameTime": "0", "CineRate": None}, Fraction(25)),
    ],
)
def test_a_stream_without_times_has_the_objects_rate(
    make: Callable[..., Path], attributes: dict[str, Any], rate: Fraction
) -> None:
    raw = make(name="clip.h264", options={"bf": "2"})
    source = open_source(str(as_dicom(raw, **attributes)))
    frames = list(source.frames())
    source.close()
    assert source.format.rate == rate
    assert [frame.seconds for frame in frames] == pytest.approx([index / rate for index in range(30)], abs=1e-5)
    assert float(frames[-1].picture.duration * source.format.time_base) == pytest.approx(1 / rate, abs=1e-5)
    assert source.notes == [f"its pictures carry no times; they were spaced at {float(rate):g} per second"]


def test_times_in_the_stream_count_more_than_the_objects_rate(make: Callable[..., Path]) -> None:
    video = make()
    source = open_source(str(as_dicom(video, CineRate=50, FrameTime="20")))
    assert [frame.pts * frame.time_base for frame in source.frames()] == pts_of(video)
    source.close()


def test_what_is_no_video_is_refused_in_a_sentence(make: Callable[..., Path], tmp_path: Path, red_model: Path) -> None:
    whole = as_dicom(make()).read_bytes()
    bad = {
        "ct": store(tmp_path / "ct", [], ExplicitVRLittleEndian, SOPClassUID=CTImageStorage),
        "jpeg": store(tmp_path / "jpeg", [b"\xff\xd8", b"\xff\xd9"], JPEGBaseline8Bit),
        "bare": store(tmp_path / "bare", []),
        "none": tmp_path / "none",
        "noise": store(tmp_path / "noise", [bytes(range(256)) * 20]),
    }
    no_items = struct.pack("<HH2sHIHHIHHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0, 0xFFFE, 0xE0DD, 0)
    bad["none"].write_bytes(bad["bare"].read_bytes() + no_items)
    for name, length in (("empty", 132), ("meta", 300), ("head", whole.index(b"\xe0\x7f\x10\x00")), ("half", 3000)):
        bad[name] = tmp_path / name
        bad[name].write_bytes(whole[:length])
    bad["end"] = tmp_path / "end"
    bad["end"].write_bytes(whole[:-8])
    done = call("process", "--output", tmp_path / "out", "--model", red_model, *FAST, *bad.values(), check=False)
    said = dict(zip(bad, done.stderr.splitlines(), strict=True))
    assert done.returncode == 1
    for name, line in said.items():
        assert line.startswith(f"polypstream: {bad[name]}: ")
    assert "is a DICOM file (CT Image Storage, Explicit VR Little Endian) without a video" in said["ct"]
    assert "JPEG Baseline" in said["jpeg"]
    assert "unknown transfer syntax" in said["empty"]
    assert "cannot be decoded" in said["noise"]
    for name in ("bare", "none", "head", "half", "end"):
        assert "is cut off or holds no pixel data; get a whole copy" in said[name], name


def test_a_file_cut_anywhere_is_a_source_error_and_leaves_nothing(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, left = as_dicom(make(frames=3), **PATIENT).read_bytes(), tmp_path / "cut.dcm", tmp_path / "left"
    left.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(left))
    for length in [*range(132, 1200, 7), *range(1200, len(whole), 499), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            open_source(str(cut))
    assert list(left.iterdir()) == []
    cut.write_bytes(whole)
    open_source(str(cut)).close()


# Writing


def test_the_best_frame_is_the_largest_then_the_surest_then_the_first() -> None:
    run = run_of((1, 0, 0.9, 20), (1, 1, 0.6, 30), (1, 2, 0.7, 30), (1, 3, 0.7, 30), (2, 2, 0.5, 9), (3, 5, 1.0, 4))
    best = best_outlines(run)
    assert {frame: sorted(outline.track_id for outline in outlines) for frame, outlines in best.items()} == {
        2: [1, 2],
        5: [3],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("height", "aspect"), [(240, None), (720, Fraction(4, 3))])
def test_capture_and_segmentation_are_the_frame_and_its_mask(
    make: Callable[..., Path], red_model: Path, tmp_path: Path, height: int, aspect: Fraction | None
) -> None:
    video = make(width=height * 4 // 3, height=height, sample_aspect_ratio=aspect)
    run = process(video, tmp_path / "results", red_model)
    done = call("dicom", video, "--results", tmp_path / "results")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        str(run / "dicom" / f"track-1-{kind}.dcm") for kind in ("capture", "segmentation")
    ]
    judge(run / "dicom")
    findings = json.loads((run / "findings.json").read_text())
    (track,) = findings["tracks"]
    capture, segmentation = objects_of(run)
    frame = int(capture.ImageComments.split("(frame ")[1].split(")")[0])
    (outline,) = (row for row in track["outlines"] if row["frame"] == frame)
    polygons = {
        row["frame"]: [np.array(corners).reshape(-1, 2) for corners in row["polygons"]] for row in track["outlines"]
    }
    canvas = np.zeros((height, height * 4 // 3), np.uint8)
    areas = {index: cv2.countNonZero(cv2.fillPoly(canvas.copy(), shapes, 1)) for index, shapes in polygons.items()}
    assert areas[frame] == max(areas.values())
    assert capture.ImageComments == (
        f"Track 1 at {outline['pts_s']:.6f} s (frame {frame}). Research use only, not a medical device."
    )
    expected = rgb_of(video, frame, height)
    assert np.abs(capture.pixel_array.astype(int) - expected).max() <= 2
    assert np.array_equal(highdicom.imread(run / "dicom" / "track-1-capture.dcm").pixel_array, capture.pixel_array)
    mask = cv2.fillPoly(np.zeros(expected.shape[:2], np.uint8), polygons[frame], 1)
    assert np.array_equal(segmentation.pixel_array, mask)
    (source,) = segmentation.get_source_image_uids()
    assert source == (capture.StudyInstanceUID, capture.SeriesInstanceUID, capture.SOPInstanceUID)
    pixels = segmentation.get_pixels_by_source_instance([capture.SOPInstanceUID], segment_numbers=[1])
    assert np.array_equal(pixels[0, ..., 0], mask)
    assert capture.get("PixelAspectRatio") == ([3, 4] if aspect else None)


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_turned_recording_is_upright_in_both_objects(
    make: Callable[..., Path], red_model: Path, tmp_path: Path, rotation: int
) -> None:
    video = make(rotation=rotation, sample_aspect_ratio=Fraction(4, 3))
    run = process(video, tmp_path / "results", red_model)
    call("dicom", video, "--results", run)
    judge(run / "dicom")
    capture, segmentation = objects_of(run)
    frame = int(capture.ImageComments.split("(frame ")[1].split(")")[0])
    upright = rgb_of(video, frame, 240 if rotation == 180 else 320)
    assert np.abs(capture.pixel_array.astype(int) - upright).max() <= 2
    # The model calls the red disc a polyp.
    red = upright[..., 0].astype(int) - upright[..., 1] > 60
    mask = segmentation.pixel_array > 0
    assert (red & mask).sum() > 0.85 * (red | mask).sum()
    assert capture.PixelAspectRatio == ([3, 4] if rotation == 180 else [4, 3])


@pytest.mark.slow
def test_the_segmentation_says_what_it_is_of_and_by_what(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    video = make()
    run = process(video, tmp_path / "results", red_model)
    call("dicom", video, "--results", run)
    capture, segmentation = objects_of(run)
    (segment,) = segmentation.SegmentSequence
    category, kind = segment.segmented_property_category, segment.segmented_property_type
    assert (category.value, category.scheme_designator, kind.value, kind.scheme_designator, kind.meaning) == (
        "49755003",
        "SCT",
        "41329004",
        "SCT",
        "Polyp",
    )
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "polypstream SA-UNet"
    assert algorithm.AlgorithmVersion == f"red 1, polypstream {load_run(run).about['polypstream']}"
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    for dataset in (capture, segmentation):
        assert "Research use only, not a medical device" in dataset.SeriesDescription
        assert dataset.InstanceNumber == 1
    assert segmentation.SegmentationType == "BINARY"
    assert (capture.LossyImageCompression, capture.StudyInstanceUID) == ("01", segmentation.StudyInstanceUID)


def test_all_tracks_of_a_run_are_in_one_study_and_two_series(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    video = make()
    run = process(video, tmp_path / "results", red_model)
    findings = json.loads((run / "findings.json").read_text())
    (first,) = findings["tracks"]
    second = first | {"track": 2, "outlines": first["outlines"][:1]}
    (run / "findings.json").write_text(json.dumps(findings | {"tracks": [first, second]}))
    written = write_dicom(str(video), run)
    datasets = [pydicom.dcmread(path) for path in written]
    assert len(datasets) == 4
    judge(run / "dicom")
    assert len({dataset.StudyInstanceUID for dataset in datasets}) == 1
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 4
    series = {(dataset.Modality, dataset.SeriesInstanceUID) for dataset in datasets}
    assert sorted(modality for modality, _ in series) == ["OT", "SEG"]
    assert "frame 0)" in objects_of(run, 2)[0].ImageComments


@pytest.mark.slow
def test_the_patient_of_a_dicom_recording_is_taken_over(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    recording = as_dicom(make(), **PATIENT)
    run = process(recording, tmp_path / "results", red_model)
    assert call("dicom", recording, "--results", tmp_path / "results").stderr == ""
    judge(run / "dicom")
    for dataset in objects_of(run):
        for keyword in set(PATIENT) - {"SpecificCharacterSet"}:
            assert dataset[keyword].value == PATIENT[keyword], keyword
        assert "PatientIdentityRemoved" not in dataset


def test_a_deidentified_run_takes_nothing_over(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    recording = as_dicom(make(), **PATIENT)
    (tmp_path / "salt").write_text("0123456789abcdef")
    box = ("--set", "view.field_of_view=[40,20,240,200]", "--set", "deidentify.blank_outside=false")
    salted = ("--hash-names", tmp_path / "salt")
    call("process", recording, "--output", tmp_path / "results", "--model", red_model, *box, *salted)
    (folder,) = (tmp_path / "results").iterdir()
    write_dicom(str(recording), folder)
    judge(folder / "dicom")
    for dataset in objects_of(folder):
        assert (dataset.PatientName, dataset.PatientIdentityRemoved) == ("", "YES")
        assert dataset.StudyInstanceUID.endswith(dataset.PatientID)
        assert dataset.DeidentificationMethod
        assert dataset.StudyInstanceUID != PATIENT["StudyInstanceUID"]
        for keyword in set(PATIENT) - {"SpecificCharacterSet", "PatientID", "StudyInstanceUID"}:
            assert not dataset.get(keyword), keyword
    for path in folder.rglob("*"):
        assert path.is_dir() or not re.search(b"ller\\^J|rztin|IM0001", path.read_bytes()), path
    shown = objects_of(folder)[0].pixel_array
    outside = np.ones(shown.shape[:2], bool)
    outside[20:220, 40:280] = False
    assert not shown[outside].any()
    assert shown[~outside].any(axis=1).mean() > 0.9


@pytest.mark.slow
def test_without_a_patient_the_objects_have_the_runs_name(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    video = make(name="Größe\\" + "x" * 70 + ".mp4")
    run = process(video, tmp_path / "results", red_model)
    call("dicom", video, "--results", tmp_path / "results")
    judge(run / "dicom")
    for dataset in objects_of(run):
        assert (dataset.PatientID, dataset.PatientName) == ("Größe_" + "x" * 56, "")


@pytest.mark.slow
def test_objects_are_replaced_only_if_told_so(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    video = make()
    run = process(video, tmp_path / "results", red_model)
    call("dicom", video, "--results", run)
    before = objects_of(run)[0].SOPInstanceUID
    (run / "dicom" / "track-9-capture.dcm").write_text("of an earlier run")
    done = call("dicom", video, "--results", run, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"polypstream: {run / 'dicom'}: holds DICOM objects already; give --overwrite to replace them"
    ]
    assert objects_of(run)[0].SOPInstanceUID == before
    call("dicom", video, "--results", run, "--overwrite")
    assert objects_of(run)[0].SOPInstanceUID != before
    assert sorted(path.name for path in (run / "dicom").iterdir()) == [
        "track-1-capture.dcm",
        "track-1-segmentation.dcm",
    ]
    process(video, tmp_path / "results", red_model, "--overwrite")
    assert list((run / "dicom").iterdir()) == []


@pytest.mark.slow
def test_another_recording_and_a_run_without_findings(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    video = make()
    run = process(video, tmp_path / "results", red_model)
    with pytest.raises(DataError, match="it is not its recording"):
        write_dicom(str(make(name="short.mp4", frames=1)), run)
    findings = json.loads((run / "findings.json").read_text())
    (run / "findings.json").write_text(json.dumps(findings | {"tracks": []}))
    done = call("dicom", video, "--results", run, "--overwrite")
    assert done.stdout == f"{video}: nothing was found in it, so there is nothing to write\n"


# Without the optional part


def test_the_base_installation_says_what_is_missing(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    video = make()
    recording = as_dicom(video)
    blocked = "import sys; sys.modules.update(pydicom=None, highdicom=None)"
    program = f"{blocked}; from polypstream.__main__ import main; main()"

    def without(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    options = ("--output", tmp_path / "results", "--model", red_model, *FAST)
    done = without("process", *options, recording, video)
    line = "needs pydicom, which is not installed; in the checkout of polypstream: pip install -e '.[dicom]' -c"
    assert done.returncode == 1
    assert done.stderr == f"polypstream: {recording}: is a DICOM file; reading it {line} constraints.txt\n"
    assert (tmp_path / "results" / "clip" / "findings.json").exists()
    done = without("dicom", video, "--results", tmp_path / "results")
    assert done.returncode == 1
    assert done.stderr.startswith("polypstream: this command needs highdicom, which is not installed")
