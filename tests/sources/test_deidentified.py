"""De-identification: what names a patient is in no output; what lies inside the view is as it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from polypstream.core.config import load_settings
from polypstream.errors import SettingsError
from polypstream.jobs.results import frames_again, load_run, open_again
from polypstream.jobs.setup import choose_field_of_view
from polypstream.sources.deidentified import Deidentified, hashed_name, read_salt
from polypstream.sources.recording import Recording
from tests.conftest import Clip, call, frames_of, make_clip, make_red_model

pytestmark = pytest.mark.slow

SECRET = "SMITH-JOHN"
WIDTH, HEIGHT, FRAMES = 640, 360, 30
# An octagon, as processors show it: its corners are cut, so that the box around it holds places outside.
LEFT, TOP, RIGHT, BOTTOM, CUT = 200, 10, 560, 350, 90
OCTAGON = np.array(
    [
        (LEFT + CUT, TOP),
        (RIGHT - CUT, TOP),
        (RIGHT, TOP + CUT),
        (RIGHT, BOTTOM - CUT),
        (RIGHT - CUT, BOTTOM),
        (LEFT + CUT, BOTTOM),
        (LEFT, BOTTOM - CUT),
        (LEFT, TOP + CUT),
    ]
)
INSIDE = cv2.fillConvexPoly(np.zeros((HEIGHT, WIDTH), np.uint8), OCTAGON, 255) > 0
# Mucosa, a red disc on it that the model finds, and a wall of the room that is neither.
MUCOSA, DISC, ROOM = (150, 100, 80), (220, 40, 40), (120, 140, 150)


def filmed(wall: tuple[int, int, int] = MUCOSA, disc: bool = True) -> np.ndarray:
    """uint8 RGB [HEIGHT, WIDTH, 3]: an octagon, text beside it, in its cut corners and over the edge of the box."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[INSIDE] = wall
    if disc:
        cv2.circle(rgb, (380, 180), 50, DISC, -1)
    for place, scale in (((5, 60), 0.9), ((5, 330), 1.6), ((LEFT + 2, TOP + 24), 0.5), ((520, 340), 0.9)):
        text = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.putText(text, SECRET, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 2)
        rgb[(text > 0) & ~INSIDE] = (255, 255, 255)
    return rgb


def write_recording(path: Path, pictures: list[np.ndarray]) -> Path:
    """H.264 at 25 a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for rgb in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds what is more than a half as red again as it is green: the disc, not the mucosa."""
    return make_red_model(tmp_path_factory.mktemp("model") / "red.onnx")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that names its patient in every way that a file can."""
    folder = tmp_path_factory.mktemp(SECRET)
    plain = write_recording(folder / "plain.mp4", [filmed()] * FRAMES)
    (folder / "words.srt").write_text(f"1\n00:00:00,000 --> 00:00:01,000\n{SECRET}\n")
    (folder / "chapters.txt").write_text(
        f";FFMETADATA1\ntitle={SECRET}\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle={SECRET}\n"
    )
    path = folder / f"{SECRET}.mov"
    names = ["title", "artist", "comment", "description"]
    tags = [part for name in names for part in ("-metadata", f"{name}={SECRET}")]
    streams = [part for kind in "vas" for part in (f"-metadata:s:{kind}:0", f"handler_name={SECRET}")]
    inputs = ["-i", plain, "-f", "lavfi", "-i", "sine=d=1.2", "-i", folder / "words.srt", "-i", folder / "chapters.txt"]
    kept = ["-map", "0:v", "-map", "1:a", "-map", "2:s", "-map_chapters", "3", "-map_metadata", "3"]
    codecs = ["-c:v", "copy", "-c:a", "aac", "-c:s", "mov_text", "-timecode", "13:37:42:00"]
    made = ["ffmpeg", "-loglevel", "error", *inputs, *kept, *codecs, *tags, *streams, path]
    subprocess.run([str(part) for part in made], check=True)
    assert {"video", "audio", "subtitle", "data"} == {stream["codec_type"] for stream in probe(path)["streams"]}
    assert SECRET.encode() in path.read_bytes()
    return path


def probe(path: Path) -> dict[str, list[dict[str, object]]]:
    """What ffprobe says of a file."""
    asked = ["ffprobe", "-loglevel", "error", "-show_streams", "-show_format", "-show_chapters", "-of", "json"]
    return json.loads(subprocess.run([*asked, str(path)], capture_output=True, check=True).stdout)


def assert_black_outside(luma: np.ndarray, black: int) -> None:
    """Nothing outside the octagon, but for what a codec smears over two pixels of its edge."""
    outside = cv2.dilate(INSIDE.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert luma[outside].max() <= black + 6


@pytest.fixture(scope="module")
def cleaned(named: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that can be made of it, de-identified, its name hashed."""
    folder = tmp_path_factory.mktemp("cleaned")
    salt = folder.parent / "salt"
    salt.write_text("0123456789abcdef0123456789abcdef")
    call("process", named, "--output", folder, "--masks", "--model", model, "--hash-names", salt)
    (run,) = folder.iterdir()
    assert run.name == hashed_name(named.name, salt.read_bytes())
    for name in ("coco", "png", "yolo", "cvat", "labelme"):
        call("masks", named, "--results", run, "--format", name)
    return run


@pytest.mark.usefixtures("ffmpeg")
class TestEverythingWritten:
    @pytest.mark.slow
    def test_no_file_holds_the_name(self, cleaned: Path) -> None:
        files = [path for path in cleaned.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} >= {".mp4", ".mkv", ".csv", ".json", ".html", ".jpg", ".png", ".xml"}
        for path in files:
            assert SECRET not in str(path.relative_to(cleaned))
            content = path.read_bytes().lower()
            for secret in (SECRET, SECRET.replace("-", ""), "plain.mp4", "0123456789abcdef"):
                assert secret.lower().encode() not in content, path

    def test_the_video_has_pictures_alone(self, cleaned: Path) -> None:
        found = probe(cleaned / "annotated.mp4")
        assert [stream["codec_type"] for stream in found["streams"]] == ["video"]
        assert found["chapters"] == []
        assert "13:37" not in json.dumps(found)

    def test_every_picture_is_black_around_the_view(self, cleaned: Path) -> None:
        for luma in frames_of(cleaned / "annotated.mp4", "gray"):
            assert_black_outside(luma, 16)
        pictures = [*cleaned.rglob("*.jpg")]
        assert len(pictures) > 3 * FRAMES
        for path in pictures:
            assert_black_outside(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), 0)

    def test_so_is_what_the_report_holds(self, cleaned: Path) -> None:
        import base64

        page = (cleaned / "report.html").read_text()
        parts = page.split("data:image/jpeg;base64,")[1:]
        assert parts
        for part in parts:
            packed = np.frombuffer(base64.b64decode(part.split('"')[0]), np.uint8)
            thumbnail = cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE)
            assert_black_outside(cv2.resize(thumbnail, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST), 6)

    def test_the_view_is_as_it_was(self, cleaned: Path, named: Path) -> None:
        """All but a rim of it is kept, its pixels the decoder's own; the same polyp is found."""
        run = load_run(cleaned)
        with_name, again = Recording(named), open_again(run, str(named))
        rim = cv2.erode(INSIDE.astype(np.uint8), np.ones((23, 23), np.uint8)) > 0
        for (frame, outlines), original in zip(frames_again(run, again), with_name.frames(), strict=True):
            luma, before = (each.picture.to_ndarray()[:HEIGHT] for each in (frame, original))
            assert (luma[rim] == before[rim]).all()
            assert len(outlines) == 1
        with_name.close()
        again.close()
        area = run.tracks[0].largest_area_fraction * WIDTH * HEIGHT
        assert area == pytest.approx(np.pi * 50**2, rel=0.1)

    def test_the_run_says_what_it_did(self, cleaned: Path) -> None:
        summary = json.loads((cleaned / "summary.json").read_text())
        assert summary["input"] == cleaned.name
        assert summary["complete"]
        assert any("blacked out" in note for note in summary["notes"])
        assert "/" not in summary["model"]["file"]


@pytest.fixture(scope="module")
def ffmpeg() -> Iterator[None]:
    """The program must be there."""
    import shutil

    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg program")
    yield


def luma_of(path: Path, *settings: str) -> list[np.ndarray]:
    """The luma of every frame that the stages would get."""
    chosen = load_settings(None, list(settings))
    recording = Recording(path)
    source = Deidentified(recording, choose_field_of_view(recording, chosen), chosen)
    luma = [frame.picture.to_ndarray()[:HEIGHT] for frame in source.frames()]
    source.close()
    return luma


def test_frames_outside_the_body_are_blank(tmp_path: Path) -> None:
    """Two seconds in the room between two inside, and the second after it."""
    pictures = [filmed()] * 75 + [filmed(ROOM, disc=False)] * 50 + [filmed()] * 75
    path = write_recording(tmp_path / "both.mp4", pictures)
    blank = [bool(luma.max() <= 16) for luma in luma_of(path)]
    assert blank == [False] * 75 + [True] * 75 + [False] * 50 or blank == [False] * 75 + [True] * 74 + [False] * 51
    assert not any(luma.max() <= 16 for luma in luma_of(path, "deidentify.blank_outside=false"))


@pytest.mark.parametrize(
    "room",
    [(200, 200, 200), (40, 90, 140), (60, 130, 120), (235, 240, 250), (30, 30, 34), (120, 140, 150)],
    ids=["white wall", "blue drape", "green gown", "ceiling lamp", "dim room", "grey steel"],
)
def test_what_a_room_looks_like_is_outside(room: tuple[int, int, int], tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    picture = filmed(room, disc=False)
    noise = random.normal(0, 6, picture.shape)
    picture[INSIDE] = np.clip(picture[INSIDE] + noise[INSIDE], 0, 255).astype(np.uint8)
    path = write_recording(tmp_path / "room.mp4", [filmed()] * 50 + [picture] * 5)
    blank = [bool(luma.max() <= 16) for luma in luma_of(path)]
    assert not any(blank[:20])
    assert blank[50:] == [True] * 5


def test_a_page_of_text_does_not_widen_the_view(tmp_path: Path) -> None:
    """A recorder's page with the patient's data, filling the screen for a sixth of the recording."""
    page = np.full((HEIGHT, WIDTH, 3), (70, 120, 200), np.uint8)
    path = write_recording(tmp_path / "page.mp4", [page] * 30 + [filmed()] * 150)
    luma = luma_of(path)
    assert all(picture.max() <= 16 for picture in luma[:30])
    assert_black_outside(luma[-1], 16)


def test_ten_bits_and_full_range(tmp_path: Path) -> None:
    for number, (pixel_format, colours, black) in enumerate(
        [("yuv420p10le", {}, 64), ("yuv420p", {"color_range": 2}, 0), ("yuv444p", {}, 16)]
    ):
        clip = Clip(f"{number}.mkv", 320, 240, 5, "ffv1", pixel_format, Fraction(25), colours=colours)
        recording = Recording(make_clip(tmp_path, clip))
        settings = load_settings(None, ["view.field_of_view=[100, 60, 120, 120]", "deidentify.blank_outside=false"])
        source = Deidentified(recording, choose_field_of_view(recording, settings), settings)
        frame = next(source.frames())
        planes = [np.array(plane) for plane in _planes(frame)]
        assert (planes[0][:60] == black).all()
        assert (planes[0][:, :100] == black).all()
        assert planes[0][70:170, 110:210].min() > black
        assert all(np.ptp(plane[:20]) == 0 for plane in planes[1:])
        source.close()


def _planes(frame: object) -> list[np.ndarray]:
    from polypstream.media.pictures import planes_of

    return planes_of(frame.picture)  # type: ignore[attr-defined]


def test_a_view_that_is_not_found_is_an_error(tmp_path: Path, model: Path) -> None:
    """Nothing would be blacked out: better nothing is written."""
    dark = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    cv2.putText(dark, SECRET, (5, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)
    path = write_recording(tmp_path / "dark.mp4", [dark] * 10)
    done = call("process", path, "--output", tmp_path / "out", "--model", model, "--deidentify", check=False)
    assert done.returncode == 1
    assert "view.field_of_view" in done.stderr
    assert not (tmp_path / "out").exists()
    box = ("--set", "view.field_of_view=[300, 100, 200, 200]")
    call("process", path, "--output", tmp_path / "out", "--model", model, "--deidentify", *box)
    assert all(luma.max() <= 20 for luma in frames_of(tmp_path / "out" / "dark" / "annotated.mp4", "gray"))


@pytest.mark.slow
def test_pictures_of_an_earlier_run_do_not_stay_among_the_results(tmp_path: Path, named: Path, model: Path) -> None:
    results = tmp_path / named.stem
    call("process", named, "--output", tmp_path, "--model", model)
    call("masks", named, "--results", tmp_path, "--format", "png")
    again = ("process", named, "--output", tmp_path, "--model", model, "--overwrite")
    done = call(*again, "--deidentify", check=False)
    assert done.returncode == 1
    assert f"{results / 'annotations-png'}: has pictures of an earlier run" in done.stderr
    call(*again)
    (results / "annotations-png").rename(tmp_path / "elsewhere")
    call(*again, "--deidentify")


def test_names(tmp_path: Path) -> None:
    salt = b"0123456789abcdef"
    assert hashed_name("a.mp4", salt) == hashed_name("a.mp4", salt)
    assert len({hashed_name("a.mp4", salt), hashed_name("b.mp4", salt), hashed_name("a.mp4", salt[::-1])}) == 3
    with pytest.raises(SettingsError, match="openssl rand"):
        read_salt(tmp_path / "missing")
    (tmp_path / "short").write_text("abc")
    with pytest.raises(SettingsError, match="fewer than 16"):
        read_salt(tmp_path / "short")


def test_live_pictures_are_refused() -> None:
    done = call("live", "demo:?seconds=1", "--set", "live.sound=true", "--set", "deidentify.enabled=true", check=False)
    assert done.returncode == 1
    assert "live pictures are not de-identified" in done.stderr
