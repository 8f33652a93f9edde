"""Joins the results of a recording's parts to the results of the recording, without encoding again."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from polypstream.archive.boundary import IDENTITY, TrackRenumbering, load_boundary, renumbering_at
from polypstream.archive.parts import BEGIN, END, TRACKS, CannotJoin, Plan
from polypstream.core.config import Settings
from polypstream.core.files import writing
from polypstream.core.frame import PictureFormat
from polypstream.core.timestamps import ClockShifts
from polypstream.errors import DataError
from polypstream.jobs.process import VIDEO, OnActivity, ProcessResult, write_summary
from polypstream.jobs.report import write_report
from polypstream.media.container import open_container, packets_of
from polypstream.media.video import MASK_OPTIONS, check_frames, open_mp4, open_output
from polypstream.sinks.findings import ExactTrack, FindingsFile, read_findings
from polypstream.sinks.tables import FramesTable
from polypstream.sources.deidentified import BLANKED
from polypstream.sources.open import open_source

ABOUT = ("input", "model", "settings", "polypstream")


def fits(before: Path, part: Path) -> bool:
    """Whether a part continues in the state in which the part before it ended.

    Args:
        before: folder of the results of the part before.
        part: folder of the results of the part.

    Raises:
        DataError: a boundary is missing.
    """
    return renumbering_at(load_boundary(before / END), load_boundary(part / BEGIN)) is not None


def join_parts(
    path: Path,
    plan: Plan,
    parts: Sequence[Path],
    folder: Path,
    settings: Settings,
    masks: bool,
    on_activity: OnActivity = lambda _: None,
) -> ProcessResult:
    """Join the results of all parts.

    Frames, times, sound, masks, tables and tracks are the same as those of `process`.

    Args:
        path: the recording; its sound is copied.
        plan: plan of the parts.
        parts: folders of the parts' results, in order.
        folder: empty folder for the results.
        settings, masks: as for the parts.
        on_activity: called often with a value that changes while there is progress.

    Returns:
        The results. `damage` describes damage of the sound.

    Raises:
        CannotJoin: the parts do not fit together.
        DataError: a result of a part cannot be read.
        OutputError: a result cannot be written.
    """
    renumberings = _renumberings(parts)
    summaries = [_summary_of(part) for part in parts]
    firsts = list(accumulate((each["frames_out"] for each in summaries[:-1]), initial=0))
    has_video = settings.output.video.codec != "none"
    notes, damage = list[str](), list[str]()
    source = open_source(str(path))
    try:
        found = _join_tables(parts, renumberings, firsts, folder)
        if has_video:
            origins = [part.start or 0 for part in plan.parts]
            videos = [part / VIDEO for part in parts]
            sound = None if settings.deidentify.enabled else source.path
            notes, damage = _join_videos(
                videos, origins, folder / VIDEO, source.format, sound, source.shifts, on_activity
            )
        if masks:
            _join_masks([part / "masks.mkv" for part in parts], folder / "masks.mkv", on_activity)
    finally:
        source.close()
    frames = sum(each["frames_out"] for each in summaries)
    for name in [*([VIDEO] if has_video else []), *(["masks.mkv"] if masks else [])]:
        check_frames(folder / name, frames, on_activity)
    run = _join_summaries(summaries, folder, found, notes, damage)
    write_report(folder)
    return run


def _renumberings(parts: Sequence[Path]) -> list[TrackRenumbering]:
    """For each part the renumbering of its tracks to those of the recording."""
    found = [IDENTITY]
    for before, part in pairwise(parts):
        boundary = renumbering_at(load_boundary(before / END), load_boundary(part / BEGIN))
        if boundary is None:
            raise CannotJoin(f"{part}: does not continue in the state in which {before} ended")
        found.append(found[-1].after(boundary))
    return found


def _summary_of(part: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((part / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{part}: holds no finished part of a recording ({error})") from error
    return summary


def _join_tables(
    parts: Sequence[Path], renumberings: Sequence[TrackRenumbering], firsts: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Write frames.csv, findings.json and the snapshots.

    Args:
        parts: folders of the parts' results.
        renumberings: for each part.
        firsts: number of each part's first frame in the recording.
        folder: folder for the results.

    Returns:
        What was found: a part of summary.json.
    """
    head = read_findings(parts[0])
    findings = FindingsFile(folder, {name: head[name] for name in ABOUT})
    with closing(findings), closing(FramesTable(folder / "frames.csv")) as table:
        for part, renumber, first in zip(parts, renumberings, firsts, strict=True):
            with (part / "frames.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    tracks = sorted(renumber(int(track)) for track in row["tracks"].split())
                    frame = str(int(row["frame"]) + first)
                    table.write_row(row | {"frame": frame, "tracks": " ".join(map(str, tracks))})
            exact = json.loads((part / TRACKS).read_text())
            findings.add_part(part, {int(track): ExactTrack(*row) for track, row in exact.items()}, renumber, first)
    return findings.found


def _join_videos(
    videos: Sequence[Path],
    origins: Sequence[int],
    target: Path,
    pictures: PictureFormat,
    sound: Path | None,
    shifts: ClockShifts,
    on_activity: OnActivity,
) -> tuple[list[str], list[str]]:
    """Copy the encoded frames of all parts and the sound of the recording into one file.

    Args:
        videos: annotated.mp4 of each part.
        origins: pts at which each part begins.
        target: file to write.
        pictures: format of the frames.
        sound: file with the sound; None: no sound.
        shifts: by how much the recording's timestamps were moved.
        on_activity: as for `join_parts`.

    Returns:
        Notes and damage of the sound.
    """
    file, audio = open_mp4(target, pictures, sound, shifts, reordered=_are_reordered(videos))
    with writing(target), closing(file):
        stream = _stream_like(file, videos)
        stream.time_base = pictures.time_base
        if audio:
            audio.add_to(file)
        try:
            file.start_encoding()
            for packet in _packets_in_order(videos, origins, pictures.time_base):
                on_activity(packet.pts)
                if audio:
                    audio.mux_until(float((packet.pts or 0) * pictures.time_base))
                packet.stream = stream
                file.mux(packet)
            if audio:
                audio.mux_until(float("inf"))
                audio.finish()
        finally:
            if audio:
                audio.close()
    return (audio.notes, audio.damage) if audio else ([], [])


def _are_reordered(videos: Sequence[Path]) -> bool:
    """Whether frames of a video may be decoded in another order than they are shown."""
    for video in videos:
        with open_container(video) as container:
            if container.streams.video[0].codec_context.has_b_frames:
                return True
    return False


def _packets_in_order(
    videos: Sequence[Path], origins: Sequence[int], time_base: Fraction
) -> Iterator[Packet[VideoStream]]:
    """Encoded frames of all parts. Each lasts until the next one begins, as in AnnotatedVideo."""
    pending: Packet[VideoStream] | None = None
    for video, origin in zip(videos, origins, strict=True):
        for packet in _packets(video, time_base, origin):
            if pending is not None:
                assert pending.dts is not None
                assert packet.dts is not None
                pending.duration = packet.dts - pending.dts
                yield pending
            pending = packet
    if pending is not None:
        yield pending


def _join_masks(videos: Sequence[Path], target: Path, on_activity: OnActivity) -> None:
    with writing(target), closing(open_output(target, MASK_OPTIONS)) as file:
        stream = _stream_like(file, videos)
        for video in videos:
            for packet in _packets(video):
                on_activity((video, packet.pts))
                packet.stream = stream
                file.mux(packet)


def _stream_like(file: OutputContainer, videos: Sequence[Path]) -> VideoStream:
    """Add a stream that accepts the packets of all videos.

    Raises:
        CannotJoin: the videos were encoded with different parameters.
    """
    headers = []
    for video in videos:
        with open_container(video) as container:
            headers.append(container.streams.video[0].codec_context.extradata)
            if video == videos[0]:
                stream = file.add_stream_from_template(container.streams.video[0])
    if len(set(headers)) > 1:
        raise CannotJoin("its parts were encoded differently, for instance with and without a hardware encoder")
    return stream


def _packets(video: Path, time_base: Fraction | None = None, origin: int = 0) -> Iterator[Packet[VideoStream]]:
    """Encoded frames of a part's video.

    Args:
        video: the file.
        time_base: convert timestamps to this time base; None: do not convert.
        origin: value added to converted timestamps.
    """
    with open_container(video) as container:
        damage: list[str] = []
        for packet in cast(
            "Iterator[Packet[VideoStream]]", packets_of(container, [container.streams.video[0]], damage)
        ):
            if not packet.size or packet.pts is None or packet.dts is None:
                continue
            if time_base is not None:
                units = packet.time_base / time_base
                packet.pts, packet.dts = round(packet.pts * units) + origin, round(packet.dts * units) + origin
                packet.duration, packet.time_base = round((packet.duration or 0) * units), time_base
            yield packet
        if damage:
            raise DataError(f"{video}: {damage[0]}")


def _join_summaries(
    parts: Sequence[dict[str, Any]], folder: Path, found: dict[str, Any], notes: list[str], damage: list[str]
) -> ProcessResult:
    seconds = sum(part["wall_seconds"] for part in parts)
    frames = sum(part["frames_out"] for part in parts)
    stages = Counter[str]()
    for part in parts:
        stages.update(part["seconds_per_stage"])
    part_notes = _join_notes([note for part in parts for note in part["notes"]])
    summary = parts[0] | {
        "complete": not damage,
        "damage": damage,
        "notes": [*part_notes, *notes],
        "frames_in": sum(part["frames_in"] for part in parts),
        "frames_out": frames,
        **found,
        "wall_seconds": round(seconds, 3),
        "frames_per_second": round(frames / seconds, 2),
        "seconds_per_stage": {name: round(spent, 3) for name, spent in stages.items()},
        "parts": len(parts),
        "unmarked": _join_copy_counts([part["unmarked"] for part in parts]),
    }
    write_summary(folder, summary)
    return ProcessResult(parts[0]["input"], folder, frames, seconds, [*part_notes, *notes], damage, **found)


def _join_copy_counts(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Add up the copied and encoded groups of pictures of all parts; None: there is no video."""
    first = parts[0]
    if first is None:
        return None
    counts = Counter[str]()
    for part in parts:
        counts.update({name: count for name, count in (part or {}).items() if isinstance(count, int)})
    return first | counts | ({"why_none": None} if counts["copied_gops"] else {})


def _join_notes(notes: Sequence[str]) -> list[str]:
    """Remove duplicate notes, and add up the numbers of blanked frames."""
    blanked = [note.removeprefix(BLANKED) for note in notes if note.startswith(BLANKED)]
    others = list(dict.fromkeys(note for note in notes if not note.startswith(BLANKED)))
    return [*others, f"{BLANKED}{sum(map(int, blanked))}"] if blanked else others
