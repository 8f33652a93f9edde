"""Options that several commands share, and the model that they ask for."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from polypstream.core.config import Settings
from polypstream.core.files import writing
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.setup import make_segmenter

log = logging.getLogger(__name__)
ModelFile = Annotated[Path | None, typer.Option(help="ONNX model; default: the shipped weights")]
ConfigFile = Annotated[Path | None, typer.Option(help="File with settings, see config.yaml")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file")]
# The --output of `process` where the README's commands write.
RESULTS = Path("results")
LIVE_HELP = (
    "/dev/video0, dshow:NAME, avfoundation:0, rtsp://, srt://, udp://, rtmp://, http(s)://, replay:FILE or demo:"
)


def write_json(file: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a command as JSON.

    Args:
        file: the file to write.
        figures: plain values and dataclasses.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing(file):
        file.write_text(json.dumps(figures, indent=2, default=asdict) + "\n")


def open_segmenter(settings: Settings) -> Segmenter:
    """Open the model of the settings, and log its notes, for instance why no GPU is used."""
    segmenter = make_segmenter(settings)
    for note in segmenter.notes:
        log.warning(note)
    return segmenter
