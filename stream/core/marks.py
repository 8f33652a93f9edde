"""Marks: events of an examination with their times, such as the beginning of the withdrawal."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

MarkKind = Literal["caecum-reached", "withdrawal-begins", "withdrawal-ends", "biopsy", "note"]
# Longest text of a mark, in characters.
LONGEST_TEXT = 200
TITLES: dict[MarkKind, str] = {
    "caecum-reached": "Caecum reached",
    "withdrawal-begins": "Withdrawal begins",
    "withdrawal-ends": "Withdrawal ends",
    "biopsy": "Biopsy",
    "note": "Note",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark.

    Attributes:
        kind: what happened.
        seconds: when, in seconds of the video.
        text: words of the user; may be empty.
    """

    kind: MarkKind
    seconds: float
    text: str = ""

    @property
    def title(self) -> str:
        """Name for the user, such as the title of a chapter."""
        return f"{TITLES[self.kind]}: {self.text}" if self.text else TITLES[self.kind]

    def as_json(self) -> dict[str, Any]:
        """The mark as findings.json has it."""
        return {"kind": self.kind, "pts_s": round(self.seconds, 6), "text": self.text}


def marks_in(content: dict[str, Any]) -> list[Mark]:
    """Read the marks of findings.json.

    Args:
        content: content of the file, or its head.

    Raises:
        KeyError, TypeError, ValueError: they cannot be read.
    """
    found = [Mark(each["kind"], float(each["pts_s"]), str(each["text"])) for each in content.get("marks", [])]
    if wrong := [mark.kind for mark in found if mark.kind not in TITLES]:
        raise ValueError(f"there is no mark {wrong[0]}")
    return sorted(found, key=lambda mark: mark.seconds)


class Marks:
    """The marks of live sources. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: dict[str, list[Mark]] = {}

    def add(self, source: str, mark: Mark) -> None:
        """Add a mark.

        Args:
            source: name of the source.
            mark: the mark; its time is that of the source's frames.
        """
        with self._lock:
            self._marks.setdefault(source, []).append(mark)

    def of(self, source: str) -> list[Mark]:
        """Return the marks of a source, in the order in which they were set.

        Args:
            source: name of the source.
        """
        with self._lock:
            return list(self._marks.get(source, ()))

    def within(self, source: str, first: float, last: float) -> list[Mark]:
        """Return the marks of a stretch of a source. Their times count from its beginning.

        Args:
            source: name of the source.
            first, last: times of the stretch in seconds, inclusive.
        """
        found = [mark for mark in self.of(source) if first <= mark.seconds <= last]
        return [Mark(mark.kind, mark.seconds - first, mark.text) for mark in found]
