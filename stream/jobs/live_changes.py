"""Logs what changes in live video: signals that are lost and return, and outputs that fail and work again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from polypstream.core.protocols import LiveSource

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LiveChanges:
    """Logs each change once.

    Args:
        sources: sources whose signals are followed.
    """

    sources: Sequence[LiveSource]
    _losses: dict[str, int] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)
    _problems: dict[str, str] = field(default_factory=dict)

    def look(self, problems: dict[str, str]) -> None:
        """Log what has changed since the last call.

        Args:
            problems: problem of each output by its name; empty if it works.
        """
        for source in self.sources:
            self._look_at_signal(source)
        for name, problem in problems.items():
            before = self._problems.get(name, "")
            if problem and problem != before:
                log.warning(f"{name}: {problem}")
            elif before and not problem:
                log.info(f"{name}: works again")
            self._problems[name] = problem

    def _look_at_signal(self, source: LiveSource) -> None:
        name, signal = source.name, source.signal
        if signal.losses > self._losses.get(name, 0) and not signal.ended:
            log.warning(f"{name}: the signal is lost ({signal.problem})")
            self._lost.add(name)
        self._losses[name] = signal.losses
        if signal.there and name in self._lost:
            log.info(f"{name}: the signal is back")
            self._lost.remove(name)
