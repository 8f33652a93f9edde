"""The output of `polypstream bench`."""

from __future__ import annotations

from typing import Any, get_args

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from polypstream.core.formatting import counted
from polypstream.core.notice import NOTICE
from polypstream.jobs.bench import LONGEST_LATENCY_MS, SHOWN_SHARE, Degradation, Display, Recorded, Shown
from polypstream.jobs.live_status import Percentiles

# Frames per second of recordings and live video in the verdict, and the share of the frames that must be shown.
RATE, ENOUGH = 30, 0.9


def print_bench(found: dict[str, Any], console: Console) -> None:
    """Print the result of `bench`."""
    recorded, degradation = found["recorded"], found["degradation"]
    parts = [
        Text("\n".join(f"{name}: {value}" for name, value in found["machine"].items())),
        _recorded(recorded, found["provider"], found["picture_size"]),
        _stages(recorded),
        _live(found["live"]),
        *([Text(_rooms(found["rooms"]))] if found["rooms"] is not None else []),
        _providers(found["providers"]),
        _questions(found["model"]["scores"], degradation, found["live"]),
        Text(verdict_of(recorded, found["picture_size"], found["live"])),
        Text(NOTICE),
    ]
    console.print(Group(*(part for each in parts for part in (each, Text()))))


def verdict_of(recorded: Recorded, size: list[int], live: list[Shown]) -> str:
    """Say in words how fast the machine is.

    Args:
        recorded: measurement of a recording.
        size: width and height of its frames in pixels.
        live: measurements of live video. The first one in-step at RATE is used.
    """
    times = recorded.frames_per_second / RATE
    one = next(each for each in live if each.display == "in-step" and each.rate == RATE)
    share = one.shown / one.frames_in if one.frames_in else 0.0
    slow = "is too slow for it, and polyps in skipped frames may be missed"
    enough = "is fast enough for it" if share >= ENOUGH else slow
    latency = f", the median latency is {one.latency_ms.median:.0f} ms" if one.latency_ms else ""
    return (
        f"This machine processes recordings of {size[0]}x{size[1]} with {RATE} frames per second at {times:.1f} times "
        f"real time. Of live video like this {100 * share:.0f} % of the frames are shown{latency}: "
        f"the machine {enough}."
    )


def _recorded(recorded: Recorded, provider: str, size: list[int]) -> RenderableType:
    half, highest = recorded.memory_mb
    return Text(
        f"recorded: {recorded.frames} frames of {size[0]}x{size[1]} at {recorded.frames_per_second:.1f} per second on "
        f"{provider}; bottleneck {recorded.bottleneck}; {recorded.own_cpu_ms:.1f} ms of CPU time per frame outside "
        f"decoder, session and encoder; memory {half:.0f} MB at half time, {highest:.0f} MB maximum"
    )


def _stages(recorded: Recorded) -> RenderableType:
    table = Table("stage", "ms per frame, including waits for a core", title="Stages, which run at the same time")
    for name, milliseconds in recorded.stage_ms.items():
        table.add_row(name, f"{milliseconds:.2f}")
    return table


def _live(live: list[Shown]) -> RenderableType:
    columns = ("rate", "shown", "overtaken", "too old", "latency", "markers")
    title = "Live, newest frame first. In ms: latency (p50 p95 p99 max), age of markers (p99)"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    table.add_column("display", min_width=13)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for each in live:
        condition = ", with a viewer" if each.viewer else ""
        if each.rooms > 1:
            shown = each.shown_by_room
            condition = f", {each.rooms} sources ({min(shown)} to {max(shown)} of each)"
        skipped = (str(each.dropped.get(reason, 0)) for reason in ("overtaken", "too_old"))
        counts = (f"{each.rate}/s", f"{each.shown} of {each.frames_in}", *skipped)
        latencies = [" ".join(f"{milliseconds:.0f}" for milliseconds in each.latency_ms or ())]
        if each.markers_ms:
            latencies.append(f"{each.markers_ms.p99:.0f}")
        table.add_row(each.display + condition, *counts, *latencies)
    return table


def _rooms(rooms: int) -> str:
    return (
        f"{counted(rooms, 'source')} at once, of 30 frames per second each, {'keeps' if rooms == 1 else 'keep'} up: "
        f"{SHOWN_SHARE:.0%} of the frames are shown, {SHOWN_SHARE:.0%} of them within {LONGEST_LATENCY_MS:.0f} ms"
    )


def _providers(providers: dict[str, dict[str, float] | str]) -> RenderableType:
    table = Table("provider", "ms per image, by batch size", title="The session alone")
    for name, times in providers.items():
        if isinstance(times, str):
            table.add_row(name, times)
        else:
            table.add_row(name, ", ".join(f"{size}: {milliseconds:.2f}" for size, milliseconds in times.items()))
    return table


def _questions(scores: dict[str, Any], degradation: Degradation, live: list[Shown]) -> RenderableType:
    """Make the table of the figures that 21 CFR 876.1520(b)(2) requires."""
    table = Table("question", "answer", title="Figures that 21 CFR 876.1520 requires of such a device")
    table.add_row("algorithm performance", _performance(scores))
    psnr = degradation.encoded_psnr_db
    after = "identical" if psnr is None else f"{psnr:.1f} dB PSNR of luma"
    table.add_row(
        "pixel degradation outside the markers",
        f"{counted(degradation.changed, 'pixel')} changed in {counted(degradation.frames, 'frame')}; "
        f"after encoding: {after}",
    )
    in_step, pass_through = (next(each for each in live if each.display == name) for name in get_args(Display))
    table.add_row(
        "latency of annotations",
        f"in-step {_latency(in_step.markers_ms)}; pass-through {_latency(pass_through.markers_ms)}",
    )
    table.add_row(
        "latency of the video",
        f"in-step {_latency(in_step.latency_ms)}; pass-through {_latency(pass_through.latency_ms)}",
    )
    return table


def _latency(milliseconds: Percentiles | None) -> str:
    if milliseconds is None:
        return "no frame was shown"
    return f"{milliseconds.median:.1f} ms (median), {milliseconds.p99:.1f} ms (99 %)"


def _performance(scores: dict[str, Any]) -> str:
    if "mean_dice" not in scores:
        return "the model file has no scores"
    return f"mean Dice {scores['mean_dice']:.3f} on {scores.get('images', '?')} images (from the model file)"
