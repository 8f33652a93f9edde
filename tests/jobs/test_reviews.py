"""Reviews: what readers store, and what becomes of it in findings, annotations, scores, studies and reports."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from polypstream.errors import DataError, OutputError, ReviewConflict
from polypstream.jobs.report import write_report
from polypstream.jobs.results import load_run
from polypstream.jobs.reviewed import REVIEWED, load_reviewed
from polypstream.jobs.reviews import REVIEWS, Review, ReviewStore
from polypstream.jobs.score import score
from polypstream.study.study import compare
from tests.conftest import RED, Clip, call, disc, make_clip, picture

ANNA, BERT = "Anna", "Bert"
SQUARE = np.array([(20, 20), (60, 20), (60, 60), (20, 60)], np.int32)
# The disc of the clip is track 1, the red square beside it track 2. The square is in the first half only.
CLIP = Clip(frames=30)


def two_findings(clip: Clip, index: int) -> np.ndarray:
    rgb = picture(clip, index)
    if index < 15:
        rgb[180:225, 20:80] = RED
    return rgb


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> tuple[Path, Path]:
    """A recording, and the folder of its results."""
    folder = tmp_path_factory.mktemp("reviews")
    recording = make_clip(folder, Clip(frames=30, draw=two_findings))
    settings = ("--set", "findings.steady=false", "--masks", "--model", red_model)
    call("process", recording, "--output", folder / "results", *settings)
    return recording, folder / "results" / "clip"


@pytest.fixture
def run(processed: tuple[Path, Path]) -> Path:
    """The folder of the results, which nobody has reviewed yet."""
    (processed[1] / REVIEWS).unlink(missing_ok=True)
    return processed[1]


def number_of(run: Path, lies_left: bool) -> int:
    """Number of the square's track, which lies on the left, or of the disc's."""
    (found,) = (
        track.track_id
        for track in load_run(run).tracks
        if (track.outlines[0].polygons[0][:, 1].min() > 160) == lies_left
    )
    return found


def test_without_reviews_the_run_is_as_it_is(run: Path) -> None:
    assert ReviewStore(run).read() == Review()
    assert [track.frames for track in load_reviewed(run).tracks] == [track.frames for track in load_run(run).tracks]
    assert not (run / REVIEWS).exists()


def test_a_review_survives_and_changes_nothing_of_the_run(run: Path) -> None:
    before = json.loads((run / "findings.json").read_text())
    store = ReviewStore(run)
    store.decide(1, "accepted", ANNA)
    store.decide(2, "rejected", ANNA)
    store.decide(2, "undecided", ANNA)
    store.correct(1, 3, [SQUARE], ANNA)
    again = ReviewStore(run).read()
    assert again.choice(1) == "accepted"
    assert again.decisions[1].reader == ANNA
    assert again.decisions[1].time > 1.7e9
    assert np.array_equal(again.corrections[1, 3].polygons[0], SQUARE)
    assert again.revision == ReviewStore(run).revision() == 4
    after = json.loads((run / "findings.json").read_text())
    (review,) = after.pop("reviews")
    assert (review["track"], review["decision"], review["reader"], review["time"][:2]) == (1, "accepted", ANNA, "20")
    assert after == before


def test_readers_do_not_overwrite_one_another_silently(run: Path) -> None:
    store = ReviewStore(run)
    store.decide(1, "accepted", ANNA)
    store.correct(1, 3, [SQUARE], ANNA)
    store.decide(1, "accepted", BERT)  # they agree
    with pytest.raises(ReviewConflict, match="Bert has marked polyp 1 as accepted on 20"):
        store.decide(1, "rejected", ANNA)
    with pytest.raises(ReviewConflict, match="Anna has drawn polyp 1 in frame 3 on 20"):
        store.correct(1, 3, [SQUARE + 5], BERT)
    with pytest.raises(ReviewConflict):
        store.withdraw(1, 3, BERT)
    store.correct(1, 4, [SQUARE], BERT)  # another frame
    store.correct(1, 3, [SQUARE + 5], BERT, replace=True)
    store.decide(1, "rejected", ANNA, replace=True)
    review = store.read()
    assert (review.corrections[1, 3].reader, review.choice(1)) == (BERT, "rejected")


def test_only_one_of_many_readers_at_the_same_time_is_first(run: Path) -> None:
    def correct(number: int) -> bool:
        try:
            ReviewStore(run).correct(1, 3, [SQUARE + number], f"reader {number}")
        except ReviewConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(correct, range(8))) == 1


def test_what_motion_carried_leaves_what_a_reader_drew(run: Path) -> None:
    store = ReviewStore(run)
    store.correct(1, 3, [SQUARE], ANNA)
    store.correct(1, 5, [SQUARE + 2], BERT)
    drawn_at = store.read().corrections[1, 3].time
    assert store.carry(1, 3, drawn_at, {frame: [SQUARE + 1] for frame in (2, 4, 5)}, ANNA) == [2, 4]
    assert store.carry(1, 3, drawn_at, {4: [SQUARE + 3]}, ANNA) == [4]  # anew: what it does not reach any more is gone
    review = store.read()
    assert sorted(review.corrections) == [(1, 3), (1, 4), (1, 5)]
    assert (review.corrections[1, 4].carried_from, review.corrections[1, 5].carried_from) == (3, None)
    store.withdraw(1, 3, ANNA)
    assert sorted(store.read().corrections) == [(1, 5)]


def test_what_is_carried_from_an_earlier_outline_is_not_stored(run: Path) -> None:
    """A reader may draw on, take back, and decide against it while an outline is carried, which takes seconds."""
    store = ReviewStore(run)
    changes: list[Callable[[], object]] = [
        lambda: store.correct(1, 3, [SQUARE + 1], ANNA),
        lambda: store.leave(1, 3, ANNA),
        lambda: store.withdraw(1, 3, ANNA),
    ]
    for change in changes:
        store.correct(1, 3, [SQUARE], ANNA)
        drawn_at = store.read().corrections[1, 3].time
        store.carry(1, 3, drawn_at, {4: [SQUARE]}, ANNA)
        change()
        assert (1, 4) not in store.read().corrections
        with pytest.raises(ReviewConflict, match="the outline of polyp 1 in frame 3 has changed meanwhile"):
            store.carry(1, 3, drawn_at, {4: [SQUARE]}, ANNA)
    assert store.read().corrections == {}


@pytest.mark.parametrize("reader", ["", "  ", "a" * 81, "a\nb"])
def test_a_reader_has_a_name(run: Path, reader: str) -> None:
    with pytest.raises(DataError, match="name of the reader"):
        ReviewStore(run).decide(1, "accepted", reader)


def test_what_cannot_be_stored_is_refused(run: Path) -> None:
    store = ReviewStore(run)
    with pytest.raises(DataError, match="an area"):
        store.correct(1, 3, [SQUARE[:2]], ANNA)
    with pytest.raises(DataError, match="needs an outline"):
        store.draw(3, [], ANNA, 3)
    with pytest.raises(DataError, match="is no decision"):
        store.decide(1, "maybe", ANNA)  # type: ignore[arg-type]
    assert store.read() == Review()


def test_a_file_that_cannot_be_used_is_said(run: Path) -> None:
    (run / REVIEWS).write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        load_reviewed(run)
    with pytest.raises(OutputError, match="cannot be written"):
        ReviewStore(run).decide(1, "accepted", ANNA)
    (run / REVIEWS).unlink()
    database = sqlite3.connect(run / REVIEWS)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DataError, match="another version"):
        ReviewStore(run).read()


@pytest.fixture
def reviewed(run: Path) -> Path:
    """The disc is accepted and corrected in frame 3, the square rejected, and a polyp drawn in frame 25."""
    store = ReviewStore(run)
    store.decide(number_of(run, True), "rejected", ANNA)
    store.decide(number_of(run, False), "accepted", ANNA)
    store.correct(number_of(run, False), 3, [SQUARE], ANNA)
    store.correct(number_of(run, False), 4, [], ANNA)  # not in view
    assert store.draw(25, [SQUARE], BERT, 3) == 3
    assert store.draw(26, [SQUARE], BERT, 3) == 4
    return run


def test_the_merged_findings(reviewed: Path) -> None:
    run = load_reviewed(reviewed)
    kept, first, second = run.tracks
    assert kept.track_id == number_of(reviewed, False)
    assert [outline.frame for outline in kept.outlines] == [frame for frame in range(20) if frame != 4]
    assert kept.frames == 19
    assert kept.seconds_in_view == pytest.approx(19 / 25)
    assert all(outline.reviewed for outline in kept.outlines)
    corrected = next(outline for outline in kept.outlines if outline.frame == 3)
    assert np.array_equal(corrected.polygons[0], SQUARE)
    assert (first.track_id, first.first_s, first.last_s) == (3, 1.0, 1.0)
    assert first.largest_area_fraction == pytest.approx(41 * 41 / (320 * 240))
    assert second.outlines[0].seconds == pytest.approx(26 / 25)


def test_undecided_tracks_stay_the_network_s_guess(run: Path) -> None:
    ReviewStore(run).correct(number_of(run, False), 3, [SQUARE], ANNA)
    merged = {track.track_id: track for track in load_reviewed(run).tracks}
    assert len(merged) == 2
    disc_track = merged[number_of(run, False)]
    assert [outline.frame for outline in disc_track.outlines if outline.reviewed] == [3]
    assert not any(outline.reviewed for outline in merged[number_of(run, True)].outlines)


def annotate(processed: tuple[Path, Path], out: Path, name: str, *more: object) -> Path:
    call("masks", processed[0], "--results", processed[1], "--format", name, "--output", out, *more)
    return out


def test_coco_has_what_the_reader_left(processed: tuple[Path, Path], reviewed: Path, tmp_path: Path) -> None:
    folder = annotate(processed, tmp_path / "coco", "coco")
    content = json.loads((folder / "annotations" / "instances_default.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    by_frame = {names[each["image_id"]]: each for each in content["annotations"]}
    assert len(content["images"]) == 30
    assert len(content["annotations"]) == 21
    assert all(each["attributes"]["reviewed"] for each in content["annotations"])
    assert by_frame["clip_000003.jpg"]["bbox"] == [20, 20, 41, 41]
    assert by_frame["clip_000025.jpg"]["attributes"]["track_id"] == 3
    assert "clip_000004.jpg" not in by_frame
    (about,) = json.loads((folder / "about.json").read_text())["recordings"]
    assert about["reviewed"] == about["findings"] == 21


@pytest.mark.parametrize("name", ["coco", "png", "yolo", "cvat", "labelme"])
def test_each_format_says_which_finding_is_reviewed(
    processed: tuple[Path, Path], run: Path, tmp_path: Path, name: str
) -> None:
    ReviewStore(run).decide(number_of(run, False), "accepted", ANNA)
    folder = annotate(processed, tmp_path / name, name)
    with (folder / "reviewed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["track"], row["reviewed"]) for row in rows} == {
        (str(number_of(run, False)), "1"),
        (str(number_of(run, True)), "0"),
    }
    assert sorted(marks_in(name, folder)) in ([], [False] * 15 + [True] * 20)
    assert bool(marks_in(name, folder)) == (name in ("coco", "cvat", "labelme"))


def marks_in(name: str, folder: Path) -> list[bool]:
    """Whether each visible annotation is reviewed, in the files of a format."""
    if name == "coco":
        content = json.loads((folder / "annotations" / "instances_default.json").read_text())
        return [each["attributes"]["reviewed"] for each in content["annotations"]]
    if name == "labelme":
        files = [json.loads(path.read_text()) for path in (folder / "images").glob("*.json")]
        return [shape["flags"]["reviewed"] for file in files for shape in file["shapes"]]
    if name == "cvat":
        polygons = ElementTree.parse(folder / "annotations.xml").getroot().iter("polygon")
        return [each[0].text == "true" for each in polygons if each.get("outside") == "0"]
    return []


def frames_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[-1]) for path in (folder / "images").glob("*.jpg"))


def test_only_reviewed_leaves_out_what_is_not_all_reviewed(
    processed: tuple[Path, Path], run: Path, tmp_path: Path
) -> None:
    """While the square is undecided, its frames are left out. Once it is rejected they are examples without it."""
    store = ReviewStore(run)
    store.decide(number_of(run, False), "accepted", ANNA)
    folder = annotate(processed, tmp_path / "one", "png", "--only-reviewed")
    assert frames_in(folder) == list(range(15, 20))
    store.decide(number_of(run, True), "rejected", ANNA)
    folder = annotate(processed, tmp_path / "both", "png", "--only-reviewed")
    assert frames_in(folder) == list(range(20))
    mask = cv2.imread(str(folder / "masks" / "clip_000000.png"), cv2.IMREAD_GRAYSCALE)
    assert mask[120, round(disc(CLIP, 0)[0])] == 255
    assert not mask[180:].any()


@pytest.mark.slow
def test_train_learns_from_what_was_reviewed(
    processed: tuple[Path, Path], run: Path, reviewed: Path, tmp_path: Path
) -> None:
    """Also from frame 5, in which the reader sees no polyp."""
    ReviewStore(run).correct(number_of(run, False), 5, [], ANNA)
    folder = annotate(processed, tmp_path / "reviewed", "png", "--only-reviewed", "--every", "0.2")
    assert frames_in(folder) == [0, 5, 10, 15, 25, 26]
    call("train", folder, "--output", tmp_path / "run", "--epochs", 2, "--size", 64, "--batch", 2, "--validation", 0.4)
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def test_masks_choose_uncertain_frames(processed: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    folder = annotate(processed, tmp_path / "few", "png", "--choose", "uncertain", "--count", 3)
    chosen = frames_in(folder)
    assert len(chosen) == 3
    assert {14, 15, 19, 20} & set(chosen)  # where the square and the disc end
    failed = call("masks", run, "--format", "png", "--choose", "uncertain", "--every", 1, check=False)
    assert failed.returncode == 2
    assert "both choose frames" in failed.stderr


def test_masks_has_what_readers_left_of_images(tmp_path: Path, red_model: Path) -> None:
    """Each finding of an image is a track. Of some images, the tracks keep their numbers."""
    images = tmp_path / "views"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), picture(CLIP, number)[..., ::-1])
    call("process", images, "--output", tmp_path / "results", "--model", red_model)
    store = ReviewStore(tmp_path / "results" / "views")
    store.decide(1, "rejected", ANNA)
    store.correct(3, 2, [SQUARE], ANNA)
    (review,) = json.loads((tmp_path / "results" / "views" / "findings.json").read_text())["reviews"]
    assert (review["track"], review["decision"]) == (1, "rejected")
    arguments = ("--results", tmp_path / "results", "--format", "png", "--only-reviewed")
    call("masks", images, *arguments, "--output", tmp_path / "all")
    assert frames_in(tmp_path / "all") == [0, 2]
    assert not cv2.imread(str(tmp_path / "all" / "masks" / "views_0.png"), cv2.IMREAD_GRAYSCALE).any()
    mask = cv2.imread(str(tmp_path / "all" / "masks" / "views_2.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(mask > 0, cv2.fillPoly(np.zeros_like(mask), [SQUARE], 1) > 0)
    call("masks", images / "[12].png", *arguments, "--output", tmp_path / "some")
    assert frames_in(tmp_path / "some") == [2]


def test_score_measures_against_the_reader(reviewed: Path) -> None:
    figures = score(reviewed, REVIEWED)
    assert figures["frames"] == 30
    assert figures["frame_sensitivity"] == pytest.approx(18 / 21)  # of frames 3, 25 and 26 it has found 3 wrongly
    assert figures["false_alarms_per_minute"] > 0  # the square
    shown = call("score", reviewed, "--truth", "reviewed").stdout
    assert "frame sensitivity" in shown


def test_a_review_must_be_complete_to_be_the_truth(run: Path) -> None:
    failed = call("score", run, "--truth", "reviewed", check=False)
    assert failed.returncode == 1
    assert "nobody has reviewed it" in failed.stderr
    ReviewStore(run).decide(1, "accepted", ANNA)
    with pytest.raises(DataError, match="these polyps are not reviewed yet: 2; accept or reject them"):
        score(run, REVIEWED)


def test_a_study_takes_the_review_as_truth(reviewed: Path, tmp_path: Path) -> None:
    (compared,) = compare(REVIEWED, [reviewed])
    assert set(compared.observations[0].polyps) == {str(number_of(reviewed, False)), "3", "4"}
    (by_folder,) = compare(reviewed.parent, [reviewed])
    assert by_folder.figures == compared.figures
    call("study", "reviewed", reviewed, "--output", tmp_path / "study")
    (reviewed / REVIEWS).unlink()
    with pytest.raises(DataError, match="nobody has reviewed it"):
        compare(REVIEWED, [reviewed])


def test_the_report_says_what_a_reader_accepted(reviewed: Path) -> None:
    text = write_report(reviewed).read_text()
    assert "accepted by Anna on 20" in text
    assert "; outline corrected in 2 frames" in text
    assert "rejected by Anna on 20" in text
    assert "Polyp 3: " in text
    assert text.count(", Bert</li>") == 2


def test_reviewed_results_are_not_replaced(processed: tuple[Path, Path], reviewed: Path, red_model: Path) -> None:
    failed = call(
        "process", processed[0], "--output", reviewed.parent, "--overwrite", "--model", red_model, check=False
    )
    assert failed.returncode == 1
    assert "has what readers decided about the earlier results" in failed.stderr
    assert (reviewed / "findings.json").is_file()
