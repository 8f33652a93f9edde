"""Prints the messages of the logger `polypstream` to standard error, as text lines or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class _Stderr(logging.Handler):
    """Writes to the current sys.stderr. A progress bar replaces it, so that messages appear above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Line(logging.Formatter):
    """Formats a message as one line of text."""

    def format(self, record: logging.LogRecord) -> str:
        return f"polypstream: {' '.join(record.getMessage().splitlines())}"


class _Json(logging.Formatter):
    """Formats a message as one JSON object per line."""

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
    """Print messages of at least this level to standard error. Another call replaces the earlier setup."""
    handler = _Stderr()
    handler.setFormatter(_Json() if as_json else _Line())
    logger = logging.getLogger("polypstream")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
