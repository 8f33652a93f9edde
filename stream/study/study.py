"""Runs a study: compares runs with the ground truth, and writes figures, tables and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from polypstream.core.files import write_atomically, write_csv, writing
from polypstream.core.notice import NOTICE
from polypstream.core.protocols import OnProgress
from polypstream.core.statistics import reliability
from polypstream.errors import DataError, OutputError
from polypstream.jobs.results import Run, load_run
from polypstream.jobs.reviewed import REVIEWED
from polypstream.jobs.reviews import ReviewStore
from polypstream.study.curves import FrocPoint, HoldOffPoint, froc, hold_off_curve
from polypstream.study.figures import compute_figures, flattened
from polypstream.study.observation import Observation, observe
from polypstream.study.outcomes import Choice, Outcome, outcome_of
from polypstream.study.runs import Setting, find_settings
from polypstream.study.truth import find_truth, read_truth

SCHEMA = "polypstream-study-1"
FILES = ("figures.json", "figures.csv", "polyps.csv", "false-positives.csv", "report.html")


@dataclass(frozen=True, slots=True)
class Compared:
    """A setting, compared with the ground truth.

    Attributes:
        setting: the setting.
        runs, observations, outcomes: of each recording, in the order of their names. The runs have no tracks.
        figures: of all recordings.
        froc, hold_off: the curves.
    """

    setting: Setting
    runs: list[Run]
    observations: list[Observation]
    outcomes: list[Outcome]
    figures: dict[str, Any]
    froc: list[FrocPoint]
    hold_off: list[HoldOffPoint]

    def as_json(self) -> dict[str, Any]:
        """Its entry in figures.json."""
        return {
            "name": self.setting.name,
            "figures": self.figures,
            "recordings": {outcome.name: compute_figures([outcome]) for outcome in self.outcomes},
            "froc": [point._asdict() for point in self.froc],
            "hold_off": [point._asdict() for point in self.hold_off],
            "calibration": self.calibration,
        }

    @property
    def calibration(self) -> list[dict[str, float]]:
        """For bins of the probability of marks: its mean, the share of them that overlap a polyp, and their number."""
        levels: np.ndarray = np.sum([outcome.levels for outcome in self.outcomes], axis=0)
        return [
            {"probability": each["probability"], "true": each["polyp"], "marks": each["pixels"]}
            for each in reliability(levels)
        ]


def compare(
    truth: Path, folders: Sequence[Path], overlap: float = 0.0, on_progress: OnProgress = lambda *_: None
) -> list[Compared]:
    """Compare runs with the ground truth.

    Args:
        truth: folder with one entry for each recording, of the name of its results, in any format that `read_truth`
            takes; or the ground truth of a single recording; or REVIEWED: the reviewed findings of the runs.
        folders: as for `find_settings`.
        overlap: intersection over union of a finding and a polyp above which the polyp is found, 0..1.
        on_progress: called as on_progress(done, None) with the number of frames of all runs so far.

    Returns:
        Each setting.

    Raises:
        DataError: a run or its ground truth is missing, cannot be read, or does not fit.
    """
    settings = find_settings(folders)
    truths = _find_truths(truth, settings)
    compared, done = [], 0
    for setting in settings:
        runs, observations = _observe_setting(setting, truths, partial(_report, on_progress, done))
        done += sum(len(observation.seconds) for observation in observations)
        outcomes = [outcome_of(observation, Choice(overlap=overlap)) for observation in observations]
        curves = froc(observations, overlap), hold_off_curve(observations, overlap)
        compared.append(Compared(setting, runs, observations, outcomes, compute_figures(outcomes), *curves))
    return compared


def observe_runs(
    truth: Path, folders: Sequence[Path], on_progress: OnProgress = lambda *_: None
) -> tuple[list[Run], list[Observation]]:
    """Compare runs of one setting with the ground truth.

    Args:
        truth, on_progress: as for `compare`.
        folders: as for `find_settings`.

    Returns:
        The runs, without their tracks, and what they show.

    Raises:
        DataError: as for `compare`; also if there are several settings.
    """
    setting, *others = find_settings(folders)
    if others:
        raise DataError(f"{setting.name} and {others[0].name}: are two folders of results; name one of them")
    truths = _find_truths(truth, [setting])
    return _observe_setting(setting, truths, partial(_report, on_progress, 0))


def _find_truths(truth: Path, settings: Sequence[Setting]) -> dict[str, Path]:
    """The ground truth of each recording, by its name.

    Raises:
        DataError: one is missing, or several settings have a review of the same recording.
    """
    names = sorted(settings[0].runs)
    if truth != REVIEWED:
        return {name: find_truth(truth, name) for name in names}
    return {name: _reviewed_run(name, [setting.runs[name] for setting in settings]) for name in names}


def _reviewed_run(name: str, runs: Sequence[Path]) -> Path:
    reviewed = [run for run in runs if ReviewStore(run).revision()]
    if not reviewed:
        raise DataError(f"{name}: nobody has reviewed it; open it on the page Review of `polypstream serve`")
    if len(reviewed) > 1:
        raise DataError(f"{reviewed[0]} and {reviewed[1]}: are both reviewed; give one of them as the ground truth")
    return reviewed[0]


def _observe_setting(
    setting: Setting, truths: Mapping[str, Path], on_frame: Callable[[int], None]
) -> tuple[list[Run], list[Observation]]:
    """The runs without their tracks, which are not needed any more, and what they show."""
    runs, observations, before = list[Run](), list[Observation](), 0
    for name, path in truths.items():
        run = load_run(setting.runs[name])
        observations.append(observe(run, read_truth(path, run), partial(_add, on_frame, before)))
        before += len(observations[-1].seconds)
        runs.append(replace(run, tracks=[]))
    return runs, observations


def _add(on_frame: Callable[[int], None], before: int, frames: int) -> None:
    on_frame(before + frames)


def _report(on_progress: OnProgress, before: int, frames: int) -> None:
    on_progress(before + frames, None)


def prepare_output(output: Path, overwrite: bool) -> None:
    """Create the folder of a study.

    Args:
        output: the folder.
        overwrite: an earlier study may be replaced.

    Raises:
        OutputError: the folder holds a study that may not be replaced, or cannot be written.
    """
    if not overwrite and any((output / name).exists() for name in FILES):
        raise OutputError(f"{output}: holds a study already; give --overwrite to replace it")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)


def write_tables(output: Path, compared: Sequence[Compared], overlap: float) -> None:
    """Write figures.json, figures.csv, polyps.csv and false-positives.csv.

    Args:
        output: the folder.
        compared: the settings.
        overlap: as for `compare`.

    Raises:
        OutputError: a file cannot be written.
    """
    head = {"schema": SCHEMA, "notice": NOTICE, "polypstream": version("polypstream"), "overlap": overlap}
    with write_atomically(output / "figures.json") as path:
        path.write_text(json.dumps(head | {"settings": [each.as_json() for each in compared]}, indent=2) + "\n")
    columns = ("setting", "recording", "figure", "value", "low_95", "high_95")
    write_csv(output / "figures.csv", columns, _figure_rows(compared))
    rows = list(polyp_rows(compared))
    write_csv(output / "polyps.csv", rows[0] if rows else ("setting", "recording", "polyp"), rows)
    rows = list(false_positive_rows(compared))
    write_csv(output / "false-positives.csv", rows[0] if rows else ("number", "setting", "recording"), rows)


def _figure_rows(compared: Sequence[Compared]) -> Iterator[dict[str, Any]]:
    for each in compared:
        of_all: list[tuple[str, dict[str, Any]]] = [("all", each.figures)]
        for recording, figures in [*of_all, *((outcome.name, compute_figures([outcome])) for outcome in each.outcomes)]:
            for name, value, ends in flattened(figures):
                low, high = ends or (None, None)
                row = {"setting": each.setting.name, "recording": recording, "figure": name}
                yield row | {"value": value, "low_95": low, "high_95": high}


def polyp_rows(compared: Sequence[Compared]) -> Iterator[dict[str, Any]]:
    """Yield a row for each polyp of each setting, as polyps.csv has them.

    Args:
        compared: the settings.
    """
    for each in compared:
        for outcome in each.outcomes:
            for polyp in outcome.polyps:
                yield {
                    "setting": each.setting.name,
                    "recording": outcome.name,
                    "polyp": polyp.name,
                    "first_s": round(polyp.first_s, 6),
                    "seconds_in_view": round(polyp.seconds_in_view, 6),
                    "share_of_field_of_view": round(polyp.share, 6),
                    "share_of_frames_found": round(polyp.share_found, 6),
                    "found": int(polyp.delay_s is not None),
                    "seconds_to_first_detection": None if polyp.delay_s is None else round(polyp.delay_s, 6),
                }


def false_positive_rows(compared: Sequence[Compared]) -> Iterator[dict[str, Any]]:
    """Yield a row for each false-positive event of each setting, as false-positives.csv has them.

    Args:
        compared: the settings.
    """
    numbers = count(1)
    for each in compared:
        for outcome in each.outcomes:
            for event in outcome.false_positives:
                yield {
                    "number": next(numbers),
                    "setting": each.setting.name,
                    "recording": outcome.name,
                    "track": event.track,
                    "first_s": round(event.first_s, 6),
                    "seconds": round(event.seconds, 6),
                    "probability": round(event.probability, 4),
                    "track_marks_a_polyp_too": int(event.marks_polyp),
                }
