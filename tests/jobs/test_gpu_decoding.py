"""Recordings that a GPU decodes. A decoder on the CPU stands in for NVDEC; all that follows is real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypstream.core.config import load_settings
from polypstream.core.time_range import range_of
from polypstream.errors import SettingsError
from polypstream.inference.nv12 import HeldPicture
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs import setup
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.sources.recording import Recording
from tests.conftest import frames_of, pts_of, summary_of
from tests.inference.nv12_decoder import Nv12Decoder
from tests.jobs.test_process import table_of

Make = Callable[..., Path]
Run = Callable[..., Path]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """pts of the pictures that were copied from the GPU."""
    copied: list[int] = []
    real = HeldPicture.download

    def download(self: HeldPicture) -> Any:
        copied.append(self.pts)
        return real(self)

    monkeypatch.setattr(HeldPicture, "download", download)
    return copied


@pytest.fixture
def run(red_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Process a recording, with a decoder in place of NVDEC, or by the CPU."""

    def run(recording: Path, gpu: Nv12Decoder | None = None, *overrides: str, times: Any = None) -> Path:
        settings = with_model(load_settings(None, ["inference.provider=cpu", *overrides]), red_model)
        segmenter = make_segmenter(settings)
        output = tmp_path / f"{'cpu' if gpu is None else 'gpu'}-{len(list(tmp_path.iterdir()))}"
        with monkeypatch.context() as patch:
            if gpu is not None:
                patch.setattr(Segmenter, "on_cuda", True)
                patch.setattr(setup, "Nvdec", lambda device: gpu)
            return process(Job(str(recording), output, masks=True, times=times), segmenter, settings).folder

    return run


def assert_same_results(by_gpu: Path, by_cpu: Path) -> None:
    """Times and tracks are equal; masks may differ at their edges, since the two scalers round differently."""
    assert pts_of(by_gpu / "annotated.mp4") == pts_of(by_cpu / "annotated.mp4")
    for ours, theirs in zip(table_of(by_gpu), table_of(by_cpu), strict=True):
        assert (ours["pts_s"], ours["polyp_count"]) == (theirs["pts_s"], theirs["polyp_count"])
        assert float(ours["max_probability"]) == pytest.approx(float(theirs["max_probability"]), abs=2 / 255)
        assert float(ours["polyp_area_fraction"]) == pytest.approx(float(theirs["polyp_area_fraction"]), abs=0.002)
    masks = [np.stack(frames_of(folder / "masks.mkv", "gray")) for folder in (by_gpu, by_cpu)]
    assert (masks[0] != masks[1]).mean() < 0.002


def test_the_results_are_those_of_the_cpu_and_only_marked_pictures_reach_it(
    make: Make, run: Run, downloads: list[int]
) -> None:
    recording = make(frames=60, options={"g": "10", "bf": "2"}, audio=["aac"])
    by_gpu, by_cpu = run(recording, Nv12Decoder()), run(recording)
    assert_same_results(by_gpu, by_cpu)
    summary = summary_of(by_gpu)
    assert summary["decoded_on_gpu"] == 60
    assert summary_of(by_cpu)["decoded_on_gpu"] == 0
    assert summary["unmarked"] == summary_of(by_cpu)["unmarked"]
    marked = [row for row in table_of(by_gpu) if row["polyp_count"] != "0"]
    copied = summary["unmarked"]["copied_frames"]  # type: ignore[index]
    assert 0 < copied < 60
    assert len(marked) <= len(set(downloads)) <= 60 - copied
    before, after = (frames_of(path, "rgb24") for path in (recording, by_gpu / "annotated.mp4"))
    assert np.array_equal(before[-1], after[-1])


def test_every_picture_can_be_encoded(make: Make, run: Run, downloads: list[int]) -> None:
    recording = make(frames=12)
    by_gpu, by_cpu = (run(recording, gpu, "output.video.unmarked=encode") for gpu in (Nv12Decoder(), None))
    assert_same_results(by_gpu, by_cpu)
    assert len(set(downloads)) == 12


def test_without_a_video_only_snapshots_need_pictures(make: Make, run: Run, downloads: list[int]) -> None:
    folder = run(make(frames=12), Nv12Decoder(), "output.video.codec=none", "overlay.style=none")
    assert list((folder / "snapshots").glob("*.jpg"))
    assert len(downloads) < 6


def test_pictures_that_the_gpu_cannot_decode_come_from_the_cpu(make: Make, run: Run) -> None:
    """As FFmpeg does it in the middle of a recording; the first picture decides whether NVDEC is used at all."""
    recording = make(frames=20)
    folder = run(recording, Nv12Decoder(until_frame=8))
    assert summary_of(folder)["decoded_on_gpu"] == 8
    assert_same_results(folder, run(recording))
    folder = run(recording, Nv12Decoder(from_frame=1))
    assert summary_of(folder)["decoded_on_gpu"] == 0
    assert "decoded on the CPU: nvdec cannot decode it" in summary_of(folder)["notes"]  # type: ignore[operator]


@pytest.mark.slow
def test_a_range_begins_at_its_frame(make: Make, run: Run) -> None:
    recording = make(frames=200, options={"g": "20"})
    by_gpu, by_cpu = (run(recording, gpu, times=range_of("0:05", "0:06")) for gpu in (Nv12Decoder(), None))
    assert len(table_of(by_gpu)) == 25
    assert_same_results(by_gpu, by_cpu)


@pytest.mark.parametrize(
    ("clip", "why"),
    [
        ({"pixel_format": "yuv422p"}, "8-bit 4:2:0"),
        ({"pixel_format": "yuv420p10le"}, "8-bit 4:2:0"),
        ({"interlaced": True}, "interlaced"),
    ],
)
def test_what_nvdec_is_not_used_for_is_said(make: Make, run: Run, clip: dict[str, Any], why: str) -> None:
    recording = make(frames=6, **clip)
    notes: Any = summary_of(run(recording, Nv12Decoder()))["notes"]
    assert any(note.startswith("decoded on the CPU: ") and why in note for note in notes)
    with pytest.raises(SettingsError, match=f"inference.decoder nvdec: .*{why}.*choose auto or cpu"):
        run(recording, Nv12Decoder(), "inference.decoder=nvdec")
    assert summary_of(run(recording, Nv12Decoder(), "inference.decoder=cpu"))["notes"] == []


def test_deidentified_pictures_are_decoded_on_the_cpu(make: Make, run: Run) -> None:
    folder = run(make(frames=6), Nv12Decoder(), "deidentify.enabled=true", "view.field_of_view=[40,20,240,200]")
    assert summary_of(folder)["decoded_on_gpu"] == 0


def test_without_a_gpu_nvdec_says_why(make: Make) -> None:
    from polypstream.media.nvdec import Nvdec

    recording = Recording(make(frames=6))
    why = recording.decode_on(Nvdec(7))
    if not why:
        pytest.skip("this machine has eight GPUs")
    assert why.startswith("NVDEC cannot be used (")
    assert len(list(recording.frames())) == 6


def test_nvdec_is_for_the_providers_that_can_take_its_pictures(make: Make, run: Run) -> None:
    with pytest.raises(SettingsError, match="needs the provider cuda or tensorrt, and the provider is cpu"):
        run(make(frames=6), None, "inference.decoder=nvdec")
