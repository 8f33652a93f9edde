"""report.html of a study: curves, recordings, and contact sheets of false positives and missed polyps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from polypstream.core.files import writing
from polypstream.core.formatting import counted
from polypstream.core.notice import NOTICE
from polypstream.core.protocols import OnProgress
from polypstream.jobs.report import inlined, write_page
from polypstream.study.charts import Chart
from polypstream.study.contact_sheet import PICTURES, Wanted, write_pictures
from polypstream.study.study import Compared

# The false positives, and the missed polyps, of each setting that lasted longest get a card.
MAX_CARDS = 300
FALSE_POSITIVE_CAUSES = (
    *("stool or residue", "bubbles", "fold", "vessel", "light", "blur", "instrument", "scar", "other"),
)
MISSED_CAUSES = (
    *("small or far away", "flat", "at the edge of the view", "covered in part", "stool or residue", "bubbles"),
    *("light", "blur", "other"),
)
# Figures of the table of recordings: their title, and the way to them in `compute_figures`.
COLUMNS = (
    ("minutes", ("minutes",)),
    ("polyps", ("polyps",)),
    ("polyp sensitivity", ("polyp_sensitivity",)),
    ("median seconds to first detection", ("seconds_to_first_detection", "median")),
    ("frame sensitivity", ("frame_sensitivity",)),
    ("frame specificity", ("frame_specificity",)),
    ("false positives per minute", ("false_positives", "per_minute")),
    ("mean Dice", ("mean_dice",)),
)


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        id, title: of its part of the page.
        explanation: what the cards show, and in which order.
        causes: from which a reader chooses.
        table: file that has all of them.
        cards: those of each setting.
    """

    id: str
    title: str
    explanation: str
    causes: Sequence[str]
    table: str
    cards: Sequence[Sequence[dict[str, Any]]]

    @property
    def shown(self) -> list[dict[str, Any]]:
        """Cards that are shown: of each setting those that lasted longest, the longest first."""
        return [card for cards in self.cards for card in sorted(cards, key=lambda card: -card["seconds"])[:MAX_CARDS]]

    @property
    def left_out(self) -> list[int]:
        """How many cards of each setting are not shown."""
        return [max(0, len(cards) - MAX_CARDS) for cards in self.cards]


def write_study_report(output: Path, compared: Sequence[Compared], on_progress: OnProgress = lambda *_: None) -> Path:
    """Write report.html, and the pictures that do not fit into it.

    Args:
        output: folder of the study.
        compared: the settings.
        on_progress: called as on_progress(done, None) with the number of frames that were read for the pictures.

    Returns:
        Path of the report.

    Raises:
        OutputError: a file cannot be written.
    """
    with writing(output):
        for path in (output / PICTURES).glob("*.jpg"):
            path.unlink()
    false_positives = Sheet(
        "false-positives",
        "False positives",
        "Those that lasted longest come first. The box shows the place.",
        FALSE_POSITIVE_CAUSES,
        "false-positives.csv",
        [_false_positives(number, each) for number, each in enumerate(compared)],
    )
    missed = Sheet(
        "missed",
        "Missed polyps",
        "Those that were in view longest come first. The box shows the polyp where it is largest.",
        MISSED_CAUSES,
        "polyps.csv",
        [_missed(number, each) for number, each in enumerate(compared)],
    )
    _add_pictures(output, compared, [*false_positives.shown, *missed.shown], on_progress)
    recordings = counted(len(compared[0].outcomes), "recording")
    return write_page(
        output,
        "study.html",
        summary={"input": f"Study of {recordings}", "notice": NOTICE},
        names=[each.setting.name for each in compared],
        figures=[each.figures for each in compared],
        charts=_charts(compared),
        columns=COLUMNS,
        recordings=[list(_recordings(each)) for each in compared],
        sheets=(false_positives, missed),
        most=MAX_CARDS,
    )


def _charts(compared: Sequence[Compared]) -> list[Chart]:
    froc = [each.froc for each in compared]
    held = [each.hold_off for each in compared]
    return [
        Chart.of(
            "FROC by polyp",
            "false-positive events per minute",
            "polyps found",
            [[(point.false_positives_per_minute, point.polyps_found) for point in points] for points in froc],
        ),
        Chart.of(
            "FROC by frame",
            "false marks per frame",
            "polyps found in each frame",
            [[(point.false_marks_per_frame, point.targets_found) for point in points] for points in froc],
        ),
        Chart.of(
            "AFROC",
            "share of polyp-free frames that are marked",
            "polyps found in each frame",
            [[(point.false_frames, point.targets_found) for point in points] for points in froc],
        ),
        Chart.of(
            "False positives and hold-off time",
            "hold-off time (s)",
            "false-positive events per minute",
            [[(point.seconds, point.false_positives_per_minute) for point in points] for points in held],
            top=None,
        ),
        Chart.of(
            "Polyps found and hold-off time",
            "hold-off time (s)",
            "polyps found",
            [[(point.seconds, point.polyps_found) for point in points] for points in held],
        ),
        Chart.of(
            "Calibration of findings",
            "probability",
            "share that overlaps a polyp",
            [[(each_bin["probability"], each_bin["true"]) for each_bin in each.calibration] for each in compared],
            right=1.0,
            diagonal=True,
        ),
    ]


def _recordings(compared: Compared) -> Iterator[tuple[str, list[Any]]]:
    """Name and values of each row of the table of recordings; the last row is of all recordings."""
    for name, figures in [*compared.as_json()["recordings"].items(), ("all", compared.figures)]:
        values = []
        for _, way in COLUMNS:
            value: Any = figures
            for key in way:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(value)
        yield name, values


def _false_positives(number: int, compared: Compared) -> list[dict[str, Any]]:
    """Cards of the false positives of a setting."""
    return [
        {
            "of": (number, place),
            "setting": compared.setting.name,
            "recording": outcome.name,
            "first_s": event.first_s,
            "seconds": event.seconds,
            "probability": event.probability,
            "note": "the same track also marks a polyp" if event.marks_polyp else "",
            "what": f"track {event.track}",
            "frame": int(observation.mark_frame[event.best_mark]),
            "box": observation.mark_box[event.best_mark],
        }
        for place, (outcome, observation) in enumerate(zip(compared.outcomes, compared.observations, strict=True))
        for event in outcome.false_positives
    ]


def _missed(number: int, compared: Compared) -> list[dict[str, Any]]:
    """Cards of the polyps that a setting misses."""
    return [
        {
            "of": (number, place),
            "setting": compared.setting.name,
            "recording": outcome.name,
            "first_s": polyp.first_s,
            "seconds": polyp.seconds_in_view,
            "probability": None,
            "note": f"{100 * polyp.share:.1f} % of the field of view",
            "what": f"polyp {polyp.name}",
            "frame": int(observation.target_frame[polyp.largest_target]),
            "box": observation.target_box[polyp.largest_target],
        }
        for place, (outcome, observation) in enumerate(zip(compared.outcomes, compared.observations, strict=True))
        for polyp in outcome.polyps
        if polyp.delay_s is None
    ]


def _add_pictures(
    output: Path, compared: Sequence[Compared], cards: Sequence[dict[str, Any]], on_progress: OnProgress
) -> None:
    """Write the pictures of the cards, and give each card the URL of its picture; None: there is none."""
    wanted: dict[tuple[int, int], list[Wanted]] = {}
    for place, card in enumerate(cards):
        card["file"] = f"{PICTURES}/{place + 1:04}.jpg"
        wanted.setdefault(card["of"], []).append(Wanted(card["frame"], card["box"], Path(card["file"]).name))
    written: set[str] = set()
    numbers = count(1)
    for (number, place), pictures in wanted.items():
        run = compared[number].runs[place]
        written |= write_pictures(run, pictures, output / PICTURES, lambda: on_progress(next(numbers), None))
    with_picture = [card for card in cards if Path(card["file"]).name in written]
    for card, url in zip(with_picture, inlined(output, [card["file"] for card in with_picture]), strict=True):
        card["picture"] = url
        if url != card["file"]:
            (output / card["file"]).unlink()
    with suppress(OSError):  # it is needed if there are pictures that did not fit into the report
        (output / PICTURES).rmdir()
