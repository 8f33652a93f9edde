"""Processes one uploaded recording, in a process of its own: `python -m stream.web.worker`.

What a stranger's file can do to a decoder then happens to this process and not to the server, and to cancel is to end
it. Its orders are JSON on standard input. It answers on standard output, a JSON object a line: ten times a second
`{"done": 12, "of": 250}`, at the end `{"message": "..."}`, with `"tracks"` and `"found"` if there are results.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import cv2  # noqa: F401 -- before av, as in stream/__main__.py

from stream.config import Settings
from stream.errors import PolypstreamError
from stream.find import choose_rules
from stream.process import make_segmenter, process
from stream.sources.recording import results_stem
from stream.web.found import found_in

# Leaves the processor to live pictures and to whoever waits for an answer.
NICENESS = 5
# The server's end is not its end: the server says what becomes of it.
for ending in (signal.SIGINT, signal.SIGTERM):
    signal.signal(ending, signal.SIG_IGN)


def work() -> None:
    """Carry out the orders."""
    orders = json.load(sys.stdin)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    recording, output, name = orders["recording"], Path(orders["output"]), orders["name"]
    settings, results = Settings.model_validate(orders["settings"]), output / results_stem(Path(recording))
    try:
        segmenter = make_segmenter(settings)
    except PolypstreamError as error:
        _say(message=str(error))
        return
    try:
        run = process(recording, output, segmenter, settings, masks=True, poll=_say_progress, title=name)
        message = run.problem or "; ".join(run.notes)
    except PolypstreamError as error:
        message = str(error)
    message = message.replace(recording, name).replace(str(results), "its results")
    # A damaged recording's report is there too, of what could be read.
    if (results / "report.html").is_file():
        card = segmenter.card
        found = found_in(results, choose_rules(settings.findings, card.threshold, card.peak).peak)
        _say(message=message, tracks=len(found.tracks), found=found.model_dump_json())
    else:
        _say(message=message)


def _say_progress(done: int, of: int | None) -> None:
    _say(done=done, of=of)


def _say(**what: Any) -> None:
    try:
        print(json.dumps(what), flush=True)
    except BrokenPipeError:  # the server is gone, and its next one begins this recording again
        os._exit(1)


if __name__ == "__main__":
    work()
