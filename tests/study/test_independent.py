"""`polypstream study` against independent programs on the same data: true-colon and pycocotools."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polypstream.jobs.results import load_run
from polypstream.study.curves import PEAKS, froc
from polypstream.study.figures import compute_figures
from polypstream.study.observation import Observation, observe
from polypstream.study.outcomes import Choice, outcome_of
from polypstream.study.truth import read_truth
from tests.study.hand_made import HEIGHT, RATE, WIDTH, Mark, make_run

FRAMES = 400


def drifting(random: np.random.Generator, frames: Sequence[int]) -> list[tuple[int, list[int]]]:
    """A box that drifts through some frames: the frame, and x, y, width and height."""
    x, y = (int(value) for value in random.integers(0, 30, 2))
    width, height = (int(value) for value in random.integers(10, 30, 2))
    step = int(random.integers(0, 3))
    return [(frame, [x + (place * step) // 8 % 30, y, width, height]) for place, frame in enumerate(frames)]


def random_case(folder: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """A run, and its ground truth in COCO: five polyps, of which some overlap in time, and marks on and beside them."""
    random = np.random.default_rng(seed)
    boxes: list[dict[str, Any]] = []
    shown: list[Mark] = []
    for polyp in range(5):
        start = int(random.integers(0, 300))
        for frame, box in drifting(random, range(start, start + int(random.integers(30, 90)))):
            boxes.append({"image_id": frame, "unique_id": f"p_{polyp}", "bbox": box})
            if polyp and random.random() < polyp / 5:
                x, y, width, height = box
                shown.append(Mark(frame, polyp, level(random), x + int(random.integers(0, 25)), y, width, height))
    for track in range(10, 22):
        start = int(random.integers(0, 380))
        for frame, (x, y, width, height) in drifting(random, range(start, start + int(random.integers(1, 20)))):
            shown.append(Mark(frame, track, level(random), x, y, width, height))
    run = make_run(folder / f"case{seed}", FRAMES, sorted(shown))
    images = [
        {"id": frame, "file_name": f"{frame:04d}.jpg", "width": WIDTH, "height": HEIGHT} for frame in range(FRAMES)
    ]
    annotations = [{"id": number, "category_id": 1, **box} for number, box in enumerate(boxes, 1)]
    return run, {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "polyp"}]}


def level(random: np.random.Generator) -> float:
    """A probability as findings.json has it."""
    return round(int(random.integers(100, 256)) / 255, 4)


def by_others(tmp_path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the independent programs compute."""
    python = Path(sys.prefix) / "readers" / "bin" / "python"
    if not python.is_file():
        pytest.skip("needs the independent programs: make .venv/.readers")
    (tmp_path / "in.json").write_text(json.dumps(given))
    program = [python, Path(__file__).with_name("independent.py"), tmp_path / "in.json", tmp_path / "out.json"]
    done = subprocess.run([*map(str, program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out.json").read_text())


def compared(run: Path, truth: dict[str, Any], tmp_path: Path) -> Observation:
    path = tmp_path / f"{run.name}.json"
    path.write_text(json.dumps(truth))
    loaded = load_run(run)
    return observe(loaded, read_truth(path, loaded))


def results_of(observation: Observation) -> list[dict[str, Any]]:
    """The marks as COCO results."""
    columns = zip(observation.mark_frame, observation.mark_probability, observation.mark_box, strict=True)
    return [
        {"image_id": int(frame), "category_id": 1, "score": float(score), "bbox": box.tolist()}
        for frame, score, box in columns
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "overlap", "peak"), [(1, 0.0, 0.3), (2, 0.0, 0.8), (3, 0.5, 0.3)])
def test_figures_are_those_of_true_colon(seed: int, overlap: float, peak: float, tmp_path: Path) -> None:
    run, truth = random_case(tmp_path, seed)
    observation = compared(run, truth, tmp_path)
    given = {"truth": truth, "marks": results_of(observation), "overlap": overlap, "peak": peak, "rate": RATE}
    theirs = by_others(tmp_path, given | {"peaks": PEAKS, "masks": []})["true_colon"]
    outcome = outcome_of(observation, Choice(peak, overlap=overlap))
    figures = compute_figures([outcome])
    assert figures["frame_sensitivity"] == pytest.approx(theirs["sensitivity"])
    assert figures["frame_specificity"] == pytest.approx(theirs["specificity"])
    assert figures["polyps"] == theirs["lesions"] == 5
    assert figures["polyp_sensitivity"] == pytest.approx(theirs["found"] / 5)
    assert figures["persistence"]["found_in_25_percent"] == pytest.approx(theirs["found_25"] / 5)
    assert figures["persistence"]["found_in_50_percent"] == pytest.approx(theirs["found_50"] / 5)
    assert figures["persistence"]["mean_share_of_frames"] == pytest.approx(theirs["share_of_frames"])
    assert figures["early_recall"]["within_1_s"] == pytest.approx(theirs["within_1_s"] / 5)
    assert figures["early_recall"]["within_3_s"] == pytest.approx(theirs["within_3_s"] / 5)
    assert sorted((polyp.name, polyp.delay_s) for polyp in outcome.polyps) == [
        (f"p_{number}", delay if delay is None else pytest.approx(delay))
        for number, delay in enumerate(theirs["delays"])
    ]
    assert 0 < figures["frame_sensitivity"] < 1  # so that there was something to compare
    for point in froc([observation], overlap):
        place = PEAKS.index(point.peak)
        assert point.targets_found == pytest.approx(theirs["targets_found"][place])
        assert point.false_marks_per_frame == pytest.approx(theirs["false_marks_per_frame"][place])
        assert point.false_frames == pytest.approx(theirs["false_frames"][place])


@pytest.mark.slow
def test_overlaps_are_those_of_pycocotools(tmp_path: Path) -> None:
    run, truth = random_case(tmp_path, 4)
    by_boxes = compared(run, truth, tmp_path)
    # The same polyps as discs in masks.
    masks = tmp_path / "masks"
    masks.mkdir()
    pictures = [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(FRAMES)]
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        cv2.circle(pictures[annotation["image_id"]], (x + width // 2, y + height // 2), width // 2, 255, -1)
    for frame, picture in enumerate(pictures):
        cv2.imwrite(str(masks / f"{frame:04d}.png"), picture)
    loaded = load_run(run)
    by_masks = observe(loaded, read_truth(masks, loaded))
    pairs = [
        (rectangle(by_masks.mark_box[mark]), pictures[by_masks.mark_frame[mark]] // 255) for mark in by_masks.pair_mark
    ]
    given = {"truth": truth, "marks": results_of(by_boxes), "peaks": [0.5], "peak": 0.5, "overlap": 0.0, "rate": RATE}
    lists = [[one.tolist(), other.tolist()] for one, other in pairs]
    theirs = by_others(tmp_path, given | {"masks": lists})["pycocotools"]
    assert len(theirs["boxes"]) > 50
    assert sorted(by_boxes.pair_iou) == pytest.approx(theirs["boxes"])
    assert len(pairs) > 50
    assert by_masks.pair_iou.tolist() == pytest.approx(theirs["masks"])


def rectangle(box: np.ndarray) -> np.ndarray:
    """The pixels of a box, uint8 [HEIGHT, WIDTH] of 0 and 1."""
    x, y, width, height = box.astype(int)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask
