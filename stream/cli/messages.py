"""Messages of the logger `polypstream` on standard error: lines for people, or JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is now: a progress bar replaces it, to keep messages above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Line(logging.Formatter):
    """One line for people."""

    def format(self, record: logging.LogRecord) -> str:
        return f"polypstream: {' '.join(record.getMessage().splitlines())}"


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            }
        )


def set_up_messages(level: int = logging.INFO, as_json: bool = False) -> None:
    """Send the messages from a level on to standard error; may be called again."""
    handler = _Stderr()
    handler.setFormatter(_Json() if as_json else _Line())
    logger = logging.getLogger("polypstream")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
