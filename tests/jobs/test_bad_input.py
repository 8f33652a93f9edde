"""Bad input of every kind: one line for a person, the right exit code, and whatever was made stays playable."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import InvalidDataError

from polypstream.core.config import load_settings
from polypstream.errors import ModelError, SettingsError
from polypstream.inference.segmenter import Segmenter
from polypstream.sources.recording import results_stem
from tests.conftest import Clip, call, command, frames_of, make_clip, make_red_model, pts_of, summary_of

pytestmark = pytest.mark.slow

SMALL = {"width": 160, "height": 120}
FAST = ("--set", "inference.provider=cpu", "--set", "inference.threads=1")


# Helpers


def process(
    recordings: list[Path | str], output: Path, model: Path, *options: object
) -> subprocess.CompletedProcess[str]:
    """`polypstream process` with the red model, whatever comes of it."""
    return call("process", "--output", output, "--model", model, *FAST, *options, "--", *recordings, check=False)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failed call."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("polypstream: ")
    return lines[0]


def playable_pts(path: Path) -> list[float]:
    """Seconds of each picture that a player shows, which goes on past a last picture that is cut off."""
    times: list[float] = []
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        packets = file.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return times
                times += [float(frame.pts * stream.time_base) for frame in packet.decode()]
            except InvalidDataError:
                continue


def rows_of(table: Path) -> list[list[str]]:
    """Lines of frames.csv without its header, whole ones only."""
    text = table.read_text() if table.exists() else ""
    return [line.split(",") for line in text[: text.rfind("\n") + 1].splitlines()[1:]]


def top_boxes(path: Path) -> set[bytes]:
    """Types of an MP4's outermost boxes; those of a fragmented one include moof."""
    data, found, at = path.read_bytes(), set[bytes](), 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        found.add(kind)
        at += int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
    return found


def remux(source: Path, target: Path, repeat: int = 1, sound_at: float = 0.0, sound_jump: tuple[int, float] = (0, 0)):
    """Copy packets: the pictures played so many times, the sound once, moved, and with a jump after some packets."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        picture_track = old.streams.video[0]
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        packets = [(packet, bytes(packet)) for packet in old.demux() if packet.dts is not None]
        pictures = [(packet, data) for packet, data in packets if packet.stream_index == picture_track.index]
        length = sum(packet.duration for packet, _ in pictures)
        moved = [(packet, data, round_ * length) for round_ in range(repeat) for packet, data in pictures]
        sounds = [(packet, data) for packet, data in packets if packet.stream_index != picture_track.index]
        for number, (packet, data) in enumerate(sounds):
            after, jump = sound_jump
            seconds = sound_at + (jump if after and number >= after else 0)
            moved.append((packet, data, round(seconds / packet.time_base)))
        for packet, data, by in sorted(moved, key=lambda each: (each[0].dts + each[2]) * each[0].time_base):
            copy = av.Packet(data)
            copy.time_base, copy.duration = packet.time_base, packet.duration
            copy.pts, copy.dts = packet.pts + by, packet.dts + by
            copy.is_keyframe = packet.is_keyframe
            copy.stream = streams[packet.stream_index]
            new.mux(copy)
    return target


def flipped(data: bytes, flips: int, seed: int, first: int = 0) -> bytes:
    """Data with some bits inverted from a place on."""
    chance, result = random.Random(seed), bytearray(data)
    for _ in range(flips):
        result[chance.randrange(first, len(result))] ^= 1 << chance.randrange(8)
    return bytes(result)


def have_ffmpeg() -> str:
    """The ffmpeg program, for media that PyAV's own encoders cannot make."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("needs the ffmpeg program")
    return program


# Files that are no recording

NO_RECORDING = {
    "missing.mp4": "no such file",
    "empty.mp4": "is empty",
    "text.mp4": "not a recording",
    "noise.mp4": "not a recording",
    "picture_named.mp4": "not a recording",
    "playlist.mp4": "not a recording",
    "list.ffconcat": "not a recording",
    "no_index.mp4": "not a recording",
    "sound.m4a": "has no video",
    "folder.mp4": "holds no recordings and no images",
    "dangling.mp4": "no such file",
    "pipe.mp4": "",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One call with a good recording between all those."""
    folder = tmp_path_factory.mktemp("no_recording")
    good = make_clip(folder, Clip(name="good.mp4", frames=10, audio=("aac",), **SMALL))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a film\n" * 100)
    (folder / "noise.mp4").write_bytes(random.Random(0).randbytes(50_000))
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n")
    (folder / "list.ffconcat").write_text("ffconcat version 1.0\nfile good.mp4\n")
    with av.open(str(folder / "picture_named.mp4"), "w", format="image2") as file:
        stream = file.add_stream("png")
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        file.mux(stream.encode(None))
    (folder / "no_index.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with av.open(str(good)) as old, av.open(str(folder / "sound.m4a"), "w", format="mp4") as new:
        track = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                new.mux(packet)
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.mp4")
    names = list(NO_RECORDING)
    recordings = [folder / name for name in (*names[:6], "good.mp4", *names[6:])]
    return process(recordings, folder / "results", make_red_model(folder / "red.onnx"))


@pytest.mark.parametrize("name", NO_RECORDING)
def test_what_is_no_recording_is_refused_in_one_line_that_names_it(name: str, refused) -> None:
    lines = [line for line in refused.stderr.splitlines() if f"/{name}: " in line]
    assert len(lines) == 1, refused.stderr
    assert NO_RECORDING[name] in lines[0]
    assert refused.returncode == 1


def test_the_good_recording_among_bad_ones_is_done(refused) -> None:
    assert len(refused.stderr.splitlines()) == len(NO_RECORDING)
    assert "good.mp4: 1 polyp (0:00:00.0 to 0:00:00." in refused.stdout


# Damaged recordings


def test_damaged_recordings_are_named_and_what_could_be_read_plays(tmp_path: Path, make, red_model: Path) -> None:
    faststart = {"movflags": "faststart"}
    data = make(frames=75, options={"g": "10"}, container_options=faststart, **SMALL).read_bytes()
    matroska = make(name="clip.mkv", frames=75, options={"g": "10"}, **SMALL).read_bytes()
    damaged = {
        "cut60.mp4": data[: len(data) * 6 // 10],
        "cut95.mp4": data[: len(data) * 95 // 100],
        "cut.mkv": matroska[: len(matroska) // 2],
        "flipped.mp4": flipped(data, 60, 1, first=len(data) // 3),
        "flipped.mkv": flipped(matroska, 60, 2, first=len(matroska) // 3),
    }
    for number, (name, content) in enumerate(damaged.items()):
        (tmp_path / f"{number}{name}").write_bytes(content)
    names = [f"{number}{name}" for number, name in enumerate(damaged)]
    done = process([tmp_path / name for name in names], tmp_path / "results", red_model)
    assert done.returncode == 1
    for name, line in zip(names, done.stderr.splitlines(), strict=True):
        folder = tmp_path / "results" / Path(name).stem
        assert f"{name}: damaged: " in line
        assert not summary_of(folder)["complete"]
        written = len(pts_of(folder / "annotated.mp4"))
        assert 5 < written == len(rows_of(folder / "frames.csv")) <= 75
        assert f"{written} frames could be read; the results are in {folder}" in line


@pytest.mark.slow
def test_damage_anywhere_never_ends_in_a_traceback(tmp_path: Path, make, red_model: Path) -> None:
    names = []
    for extension, audio in (("mp4", "aac"), ("mkv", "aac"), ("ts", "mp2"), ("flv", "aac")):
        clip = make(name=f"whole.{extension}", frames=50, audio=(audio,), options={"g": "10"}, **SMALL)
        for seed in range(8):
            names.append(tmp_path / f"{extension}{seed}.{extension}")
            names[-1].write_bytes(flipped(clip.read_bytes(), 5 + 20 * seed, seed))
    done = process(names, tmp_path / "results", red_model, "--set", "output.video.preset=ultrafast")
    assert done.returncode in (0, 1), done.stderr
    blamed_on_the_output = [line for line in done.stderr.splitlines() if "annotated.mp4: cannot be written" in line]
    assert not blamed_on_the_output, "the disk is fine, the recording is damaged"
    videos = list(tmp_path.glob("results/*/annotated.mp4"))
    assert len(videos) > len(names) / 2
    assert all(pts_of(video) for video in videos)


@pytest.mark.parametrize(
    "clip",
    [
        Clip(name="transport.ts", audio=("aac",), frames=50, **SMALL),
        Clip(name="stereo.avi", codec="mpeg4", audio=("pcm_s16le",), frames=50, **SMALL),
        Clip(name="two.ts", audio=("mp2", "aac"), frames=50, **SMALL),
    ],
    ids=lambda clip: clip.name,
)
def test_a_whole_recording_with_sound_is_not_refused(tmp_path: Path, clip: Clip, red_model: Path) -> None:
    done = process([make_clip(tmp_path, clip)], tmp_path / "results", red_model)
    assert done.returncode == 0, done.stderr
    video = tmp_path / "results" / Path(clip.name).stem / "annotated.mp4"
    assert len(pts_of(video)) == 50
    with av.open(str(video)) as file:
        assert len(file.streams.audio) == len(clip.audio)
        assert sum(frame.samples for frame in file.decode(file.streams.audio[0])) > 48000


def _sound_that_jumps(folder: Path) -> Path:
    """Half a day ahead: more than the 2**31 samples that a fragment of an MP4 can span."""
    clip = make_clip(folder, Clip(frames=75, audio=("aac",), **SMALL))
    return remux(clip, folder / "jumps.mkv", sound_jump=(60, 13 * 3600))


def _sound_that_starts_again(folder: Path) -> Path:
    once = make_clip(folder, Clip(name="once.ts", frames=25, audio=("mp2",), **SMALL))
    (folder / "again.ts").write_bytes(once.read_bytes() * 3)
    return folder / "again.ts"


def _sound_that_cannot_be_decoded(folder: Path) -> Path:
    """WavPack, which MP4 cannot hold, so that it must be decoded; every fifth packet is overwritten."""
    clip = make_clip(folder, Clip(name="wavpack.mkv", frames=75, audio=("wavpack",), **SMALL))
    content = clip.read_bytes()
    with av.open(str(clip)) as file:
        sound = [bytes(packet) for packet in file.demux(audio=0) if packet.dts is not None]
    for packet in sound[len(sound) // 3 :: 5]:
        inside = packet[100:-100]  # Matroska stores the packets without their first bytes
        assert inside in content
        content = content.replace(inside, b"\xff" * len(inside))
    clip.write_bytes(content)
    return clip


@pytest.mark.parametrize("spoil", [_sound_that_jumps, _sound_that_starts_again, _sound_that_cannot_be_decoded])
def test_damaged_sound_does_not_cost_the_pictures(
    tmp_path: Path, red_model: Path, spoil: Callable[[Path], Path]
) -> None:
    recording = spoil(tmp_path)
    done = process([recording], tmp_path / "results", red_model)
    assert done.returncode in (0, 1), (done.returncode, done.stderr)
    assert "annotated.mp4" not in done.stderr
    assert len(pts_of(tmp_path / "results" / recording.stem / "annotated.mp4")) == 75


def test_a_track_that_appears_midway_does_not_end_in_a_traceback(tmp_path: Path, make, red_model: Path) -> None:
    """One inverted bit in the track's number of a transport stream's packet is enough."""
    data = bytearray(make(name="clip.ts", frames=75, audio=("mp2",), **SMALL).read_bytes())
    starts = [at for at in range(0, len(data), 188) if data[at + 1 : at + 3] == b"\x41\x01"]  # of sound, track 0x101
    data[starts[len(starts) * 3 // 4] + 2] ^= 0x10
    (tmp_path / "new.ts").write_bytes(data)
    done = process([tmp_path / "new.ts"], tmp_path / "results", red_model)
    assert done.returncode in (0, 1), done.stderr
    assert len(pts_of(tmp_path / "results" / "new" / "annotated.mp4")) >= 50


def test_pictures_that_change_size_midway_are_all_kept(tmp_path: Path, make, red_model: Path) -> None:
    small = make(name="small.ts", frames=25, **SMALL)
    large = make(name="large.ts", frames=25, time_base=Fraction(1, 25), pts=range(50, 75))
    (tmp_path / "grows.ts").write_bytes(small.read_bytes() + large.read_bytes())
    done = process([tmp_path / "grows.ts"], tmp_path / "results", red_model)
    assert done.returncode == 0, done.stderr
    assert "25 pictures of another size or pixel shape" in done.stdout
    pictures = frames_of(tmp_path / "results" / "grows" / "annotated.mp4", "gray")
    assert {picture.shape for picture in pictures} == {(120, 160)}
    assert len(pictures) == 50
    assert {round(float(picture[5:25, 5:25].mean())) for picture in pictures} <= {89, 90, 91}


# Names of files


def test_any_name_that_the_file_system_allows_will_do(tmp_path: Path, make, red_model: Path) -> None:
    clip = make(frames=5, **SMALL)
    names = ["a b ü 息肉.mp4", "two\nlines.mp4", "-dash.mp4", "12:30.mp4", "[red]x.mp4", "%d.mp4", "n" * 240, ".mp4"]
    for name in names:
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "link.mp4").symlink_to(clip)
    names.append("link.mp4")
    done = subprocess.run(
        [*command(), "process", "--output", "res:ults", "--model", red_model, *FAST, "--", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        assert len(pts_of(tmp_path / "res:ults" / results_stem(Path(name)) / "annotated.mp4")) == 5


def test_a_name_too_long_for_the_file_system_is_one_line_and_stops_nothing(
    tmp_path: Path, make, red_model: Path
) -> None:
    line = complaint(process(["n" * 300 + ".mp4", make(frames=5, **SMALL)], tmp_path / "results", red_model))
    assert "nnn" in line
    assert len(pts_of(tmp_path / "results" / "clip" / "annotated.mp4")) == 5


def test_results_stay_inside_the_output_folder(tmp_path: Path, make, red_model: Path) -> None:
    odd = make(frames=5, **SMALL).rename(tmp_path / "...mp4")  # its stem is ".."
    assert process([odd], tmp_path / "outer" / "results", red_model).returncode == 0
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["results"]
    assert [path.name for path in (tmp_path / "outer" / "results").iterdir()] == ["recording"]


def test_two_recordings_with_one_stem_are_refused_before_the_start(tmp_path: Path, make, red_model: Path) -> None:
    clip, other = make(frames=5, **SMALL), tmp_path / "sub" / "CLIP.mkv"
    other.parent.mkdir()
    other.touch()
    line = complaint(process([clip, other], tmp_path / "results", red_model))
    assert f"{clip} and {other}: the results of both would be in the same folder, CLIP. Process one of them" in line
    assert not (tmp_path / "results").exists()


# Models


def _foreign(path: Path) -> None:
    from onnx import TensorProto, helper, save

    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))


def _nameless(path: Path) -> None:
    from onnx import load, save

    model = load(str(make_red_model(path)))
    del model.metadata_props[:]
    save(model, str(path))


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such model file"),
    "folder": (lambda path: path.mkdir(), "no such model file"),
    "empty": (lambda path: path.touch(), "not a model"),
    "text": (lambda path: path.write_text("weights\n"), "not a model"),
    "truncated": (lambda path: path.write_bytes(make_red_model(path).read_bytes()[:400]), "not a model"),
    "bit-flipped": (lambda path: path.write_bytes(flipped(make_red_model(path).read_bytes(), 200, 0)), "not a model"),
    "foreign": (_foreign, "not a polypstream model; make one with"),
    "no metadata": (_nameless, "metadata have no valid value for model_name"),
    "garbled metadata": (
        lambda path: make_red_model(path, scores="{", threshold="high"),
        "no valid value for threshold, scores",
    ),
    "nan threshold": (lambda path: make_red_model(path, threshold="nan"), "no valid value for threshold"),
    "other size": (lambda path: make_red_model(path, input_size="256"), "say 256 pixels"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_is_not_ours_or_is_corrupt_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    make_it, said = BAD_MODELS[kind]
    make_it(path)
    with pytest.raises(ModelError) as caught:
        Segmenter(path, "cpu")
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "text", "foreign"])
def test_a_bad_model_is_one_line_and_writes_nothing(tmp_path: Path, make, kind: str) -> None:
    path = tmp_path / "model.onnx"
    BAD_MODELS[kind][0](path)
    line = complaint(process([make(frames=5, **SMALL)], tmp_path / "results", path))
    assert str(path) in line
    assert not (tmp_path / "results").exists()


# Output


def test_results_that_exist_are_kept_without_overwrite(tmp_path: Path, make, red_model: Path) -> None:
    clip, results = make(frames=5, **SMALL), tmp_path / "results" / "clip"
    results.mkdir(parents=True)
    (results / "frames.csv").write_text("mine")
    line = complaint(process([clip], tmp_path / "results", red_model))
    assert "--overwrite" in line
    assert [path.name for path in results.iterdir()] == ["frames.csv"]
    assert (results / "frames.csv").read_text() == "mine"


def test_a_run_that_cannot_start_keeps_the_old_results_even_with_overwrite(
    tmp_path: Path, make, red_model: Path
) -> None:
    clip, results = make(frames=5, **SMALL), tmp_path / "results"
    assert process([clip], results, red_model).returncode == 0
    outside = ("--set", "view.field_of_view=[0,0,999,999]")
    line = complaint(process([clip], results, red_model, "--overwrite", *outside))
    assert "view.field_of_view" in line
    assert (results / "clip" / "annotated.mp4").exists()


def test_a_recording_is_never_overwritten_by_its_own_results(tmp_path: Path, make, red_model: Path) -> None:
    clip = make(name="annotated.mp4", frames=5, **SMALL)
    (tmp_path / "annotated").mkdir()
    inside = clip.rename(tmp_path / "annotated" / "annotated.mp4")
    before = inside.read_bytes()
    line = complaint(process([inside], tmp_path, red_model, "--overwrite"))
    assert "choose another output folder" in line
    assert inside.read_bytes() == before


@pytest.mark.parametrize("place", ["file", "below a file", "no such device", "too long", "read-only folder"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, make, red_model: Path, place: str) -> None:
    clip = make(frames=5, **SMALL)
    (tmp_path / "file").touch()
    output = {
        "file": tmp_path / "file",
        "below a file": clip / "sub",
        "no such device": Path("/proc/nothing"),
        "too long": tmp_path / ("n" * 300),
        "read-only folder": tmp_path / "closed",
    }[place]
    if place == "read-only folder":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        output.mkdir(mode=0o500)
    if place == "no such device" and not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    line = complaint(process([clip], output, red_model))
    assert f"{output}" in line
    assert ("is a file" if place == "file" else "cannot be written") in line


def test_a_folder_in_the_place_of_a_result_is_one_line(tmp_path: Path, make, red_model: Path) -> None:
    (tmp_path / "results" / "clip" / "annotated.mp4").mkdir(parents=True)
    assert "results/clip" in complaint(
        process([make(frames=5, **SMALL)], tmp_path / "results", red_model, "--overwrite")
    )


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_the_video_plays_up_to_there(
    tmp_path: Path, tiny_disk: Path, red_model: Path
) -> None:
    program = have_ffmpeg()
    noise = ["-f", "lavfi", "-i", "nullsrc=s=320x240:r=25:d=3,geq=random(1)*255:128:128"]
    noisy = tmp_path / "noisy.mp4"
    subprocess.run([program, "-v", "error", *noise, "-c:v", "libx264", "-preset", "ultrafast", noisy], check=True)
    line = complaint(process([noisy], tiny_disk, red_model))
    assert "annotated.mp4: the disk is full" in line
    assert len(playable_pts(tiny_disk / "noisy" / "annotated.mp4")) >= 10
    summary = tiny_disk / "noisy" / "summary.json"
    if summary.exists():  # no room for it is fine, half of one is not
        assert not json.loads(summary.read_text())["complete"]


def test_a_run_that_found_the_disk_full_can_be_repeated_once_there_is_room(
    tmp_path: Path, make, tiny_disk: Path, red_model: Path
) -> None:
    """No page is left: files are created, and nothing can be written to them."""
    clip, results = make(frames=5, **SMALL), tiny_disk / "results" / "clip"
    results.mkdir(parents=True)
    (tiny_disk / "ballast").write_bytes(bytes(shutil.disk_usage(tiny_disk).free))
    assert "the disk is full" in complaint(process([clip], tiny_disk / "results", red_model))
    assert not (results / "summary.json").exists()
    (tiny_disk / "ballast").unlink()
    long_ago = time.time() - 61
    for left in results.iterdir():
        os.utime(left, (long_ago, long_ago))
    done = process([clip], tiny_disk / "results", red_model)
    assert done.returncode == 0, done.stderr
    assert summary_of(results)["complete"]


# Settings

BAD_SETTINGS = [
    ("overlay.opacity=2", "overlay.opacity"),
    ("overlay.opacity=-0.1", "overlay.opacity"),
    ("overlay.opacity=.nan", "overlay.opacity"),
    ("overlay.opacity=much", "overlay.opacity"),
    ("overlay.opacity=[1]", "overlay.opacity"),
    ("overlay.opacity=2001-99-99", "overlay.opacity"),
    ("overlay.opacity=0b_", "overlay.opacity"),
    ("overlay.opacity=[", "overlay.opacity"),
    ("overlay.opacity=" + "[" * 2000, "overlay.opacity"),
    ("overlay.opactiy=0.5", "did you mean overlay.opacity"),
    ("overlay.style=", "overlay.style"),
    ("inference.threads=true", "inference.threads"),
    ("inference.threads=1.5", "inference.threads"),
    ("inference.threads=99999999999999999999", "inference.threads"),
    ("inference.batch_size=0", "inference.batch_size"),
    ("findings.threshold=1", "findings.threshold"),
    ("inference.provider=gpu", "`cuda`"),
    ("inference.model=5", "inference.model"),
    ("view.field_of_view=[0, 0, 0, 0]", "view.field_of_view"),
    ("view.field_of_view=[1, 2, 3]", "view.field_of_view"),
    ("output.video.crf=52", "output.video.crf"),
    ("output.video.preset=quick", "`ultrafast`"),
    ("overlay=5", "overlay"),
    ("nothing.of.the.kind=1", "no such setting"),
    ("overlay.opacity", "key=value"),
    ("=1", "key=value"),
    ("", "key=value"),
]


@pytest.mark.parametrize(("override", "said"), BAD_SETTINGS, ids=[override[:32] for override, _ in BAD_SETTINGS])
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, [override])
    assert str(caught.value).startswith(f"{override}: ")
    assert said in str(caught.value)
    assert "instance of" not in str(caught.value), "words of the program's inside"


BAD_FILES = {
    "unknown key": ("overlay: {opactiy: 0.5}", "overlay.opactiy"),
    "unknown section": ("overlays: {opacity: 0.5}", "overlays"),
    "out of range": ("overlay:\n  opacity: 7\n", "overlay.opacity"),
    "wrong type": ("inference:\n  threads: many\n", "inference.threads"),
    "a boolean for a number": ("overlay:\n  opacity: yes\n", "overlay.opacity"),
    "a value for a section": ("overlay: tint\n", "overlay"),
    "a number as key": ("5: 3\n", "5"),
    "a list": ("- overlay\n", "no sections"),
    "a line of text": ("hello\n", "no sections"),
    "a tab": ("overlay:\n\topacity: 1\n", "not valid YAML"),
    "two documents": ("overlay: {}\n---\nview: {}\n", "not valid YAML"),
    "an impossible date": ("overlay: {opacity: 2001-99-99}\n", ""),
    "an object": ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "a very deep list": ("[" * 2000, ""),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_wrong_settings_file_is_named_with_its_key(tmp_path: Path, kind: str) -> None:
    content, said = BAD_FILES[kind]
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(file, [])
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert "instance of" not in str(caught.value), "words of the program's inside"


def test_a_section_whose_settings_are_all_commented_out_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("overlay:\n  # opacity: 0.5\ninference:\n  # threads: 1\n")
    changed = load_settings(file, ["inference.threads=2"])
    assert changed.overlay == load_settings(None, []).overlay
    assert changed.inference.threads == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "overlay.opacity=2"), "--set overlay.opacity=2"),
        (("--config", "bad.yaml"), "bad.yaml: overlay.opacity"),
        (("--config", "missing.yaml"), "missing.yaml: no such file"),
        (("--config", "clip.mp4"), "clip.mp4: cannot be read"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_is_written(
    tmp_path: Path, make, red_model: Path, options: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(frames=5, **SMALL)
    (tmp_path / "bad.yaml").write_text("overlay: {opacity: 2}\n")
    monkeypatch.chdir(tmp_path)
    assert said in complaint(process(["clip.mp4"], Path("results"), red_model, *options))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments", [["process"], ["train", "folder"], ["process", "clip.mp4", "--output", "x", "--nope"], ["dance"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = call(*arguments, check=False)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_a_recording_in_place_of_a_command_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my film.avi").touch()
    done = call("my film.avi", "-o", "results", check=False)
    assert done.returncode == 2
    said = "my film.avi is no command; did you mean `polypstream process 'my film.avi' -o results`?"
    assert said in " ".join(done.stderr.split())
    assert "No such command 'film.avi'" in call("film.avi", check=False).stderr


@pytest.mark.parametrize("uri", ["demo:?length=1", "demo:?seconds=0", "demo:?seconds=nan", "demo:?rate=1/0"])
def test_one_wrong_demo_address_does_not_stop_the_rest(tmp_path: Path, make, red_model: Path, uri: str) -> None:
    line = complaint(process([uri, make(frames=5, **SMALL)], tmp_path / "results", red_model))
    assert uri in line
    assert (tmp_path / "results" / "clip" / "annotated.mp4").exists()


# Interruptions


def start(recording: Path, output: Path, model: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command(), "process", str(recording), "--output", str(output), "--model", str(model), *FAST, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(table: Path, rows: int, running: subprocess.Popen[str]) -> None:
    while len(rows_of(table)) < rows:
        assert running.poll() is None, f"it ended before it had done {rows} frames: {running.communicate()}"
        time.sleep(0.02)


@pytest.fixture
def long_clip(tmp_path: Path) -> Callable[..., Path]:
    """A minute of pictures or more, by copying packets; optionally with two seconds of sound somewhere."""

    def made(sound_at: float | None = None, rate: int = 25) -> Path:
        audio = () if sound_at is None else ("aac",)
        short = make_clip(
            tmp_path, Clip(name="short.mp4", width=640, height=480, frames=50, rate=Fraction(rate), audio=audio)
        )
        return remux(short, tmp_path / "long.mp4", repeat=40, sound_at=sound_at or 0)

    return made


NOTHING_MARKED = ("--set", "findings.smallest=0.99")


@pytest.mark.parametrize(
    ("kind", "rows", "clip", "options", "group_s"),
    [
        ("plain", 300, {}, (), 0),
        ("sound that ends early", 400, {"sound_at": 0.0}, (), 0),
        ("sound that starts late", 300, {"sound_at": 50.0}, (), 0),
        ("five pictures a second", 80, {"rate": 5}, (), 0),
        ("a slow encoder", 120, {}, ("--set", "output.video.preset=slower"), 0),
        ("copied groups of ten seconds", 90, {"rate": 5}, NOTHING_MARKED, 10),
    ],
)
def test_a_killed_process_leaves_a_video_that_plays_to_within_two_seconds(
    tmp_path: Path,
    long_clip,
    red_model: Path,
    kind: str,
    rows: int,
    clip: dict[str, float],
    options: tuple[str, ...],
    group_s: float,
) -> None:
    """Or, if nothing is marked, to within two seconds of the group of pictures that was in work."""
    running = start(long_clip(**clip), tmp_path / "results", red_model, *options)
    results = tmp_path / "results" / "long"
    wait_for_rows(results / "frames.csv", rows, running)
    running.kill()
    running.communicate()
    reached = float(rows_of(results / "frames.csv")[-1][1])
    assert playable_pts(results / "annotated.mp4")[-1] >= reached - 2 - group_s


@pytest.mark.parametrize(("presses", "preset"), [(1, "slow"), (2, "veryslow")])
def test_control_c_closes_the_video_and_exits_with_130(
    tmp_path: Path, long_clip, red_model: Path, presses: int, preset: str
) -> None:
    running = start(long_clip(), tmp_path / "results", red_model, "--set", f"output.video.preset={preset}")
    results = tmp_path / "results" / "long"
    wait_for_rows(results / "frames.csv", 60, running)
    for _ in range(presses):
        running.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert "FATAL" not in said
    assert playable_pts(results / "annotated.mp4")
    if presses == 1:
        pts = pts_of(results / "annotated.mp4")
        assert 60 <= len(pts) == len(rows_of(results / "frames.csv")) < 2000
        assert not summary_of(results)["complete"]
        assert top_boxes(results / "annotated.mp4") == {b"ftyp", b"free", b"mdat", b"moov"}, "left as fragments"


# What Python says if Control-C comes while it loads its own modules.
PYTHON_STARTING = "Fatal Python error: init_import_site"


def test_control_c_while_starting_is_no_traceback(tmp_path: Path, make, red_model: Path) -> None:
    clip = make(frames=5, **SMALL)
    for wait in (0.15, 0.3):
        said, later = PYTHON_STARTING, wait
        while said.startswith(PYTHON_STARTING):  # on a busy machine none of our code has run yet
            running = start(clip, tmp_path / str(later), red_model)
            time.sleep(later)
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
            later += 0.1
        assert running.returncode in (0, 130), said
        assert "Traceback" not in said
