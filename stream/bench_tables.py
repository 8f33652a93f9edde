"""What `polypstream bench` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream.bench import Degradation, Live, Recorded
from stream.model import NOTICE


def print_bench(found: dict[str, Any], console: Console) -> None:
    """Show the result of `bench`."""
    recorded, degradation = found["recorded"], found["degradation"]
    parts = [
        Text("\n".join(f"{name}: {value}" for name, value in found["machine"].items())),
        _recorded(recorded, found["provider"], found["picture_size"]),
        _rooms(recorded),
        _live(found["live"]),
        _providers(found["providers"]),
        _questions(found["model"]["scores"], degradation, found["live"][0]),
        Text(NOTICE),
    ]
    console.print(Group(*(part for each in parts for part in (each, Text()))))


def _recorded(recorded: Recorded, provider: str, size: list[int]) -> RenderableType:
    half, most = recorded.memory_mb
    return Text(
        f"recorded: {recorded.frames} frames of {size[0]}x{size[1]} at {recorded.frames_per_second:.1f} per second on "
        f"{provider}; bottleneck {recorded.bottleneck}; {recorded.own_cpu_ms:.1f} ms of CPU time per frame outside "
        f"decoder, session and encoder; memory {half:.0f} MB at half time, {most:.0f} MB at most"
    )


def _rooms(recorded: Recorded) -> RenderableType:
    table = Table("room", "ms per frame, waiting for a core included", title="Rooms, working at the same time")
    for name, milliseconds in recorded.room_ms.items():
        table.add_row(name, f"{milliseconds:.2f}")
    return table


def _live(live: list[Live]) -> RenderableType:
    title = "Live, each frame shown with its markers, the newest frame winning"
    columns = ("frames in per second", "shown per second", "dropped", "delay p50", "p95", "p99", "longest, ms")
    table = Table(*columns, title=title)
    for each in live:
        delays = [f"{delay:.0f}" for delay in each.delay_ms]
        table.add_row(str(each.rate), f"{each.shown_per_second:.1f}", f"{each.dropped:.1%}", *delays)
    return table


def _providers(providers: dict[str, dict[str, float] | str]) -> RenderableType:
    table = Table("provider", "ms per picture, by batch size", title="The session alone")
    for name, times in providers.items():
        if isinstance(times, str):
            table.add_row(name, times)
        else:
            table.add_row(name, ", ".join(f"{size}: {milliseconds:.2f}" for size, milliseconds in times.items()))
    return table


def _questions(scores: dict[str, Any], degradation: Degradation, live: Live) -> RenderableType:
    """After 21 CFR 876.1520(b)(2)."""
    table = Table("question", "answer", title="What regulators ask of such a device")
    table.add_row("algorithm performance", _performance(scores))
    psnr = degradation.encoded_psnr_db
    after = "identical" if psnr is None else f"{psnr:.1f} dB PSNR of luma"
    table.add_row(
        "pixel degradation outside the markers",
        f"{degradation.changed} pixels changed in {degradation.frames} frames; once encoded: {after}",
    )
    median, _, nearly_all, _ = live.delay_ms
    delay = f"{median:.0f} ms (median), {nearly_all:.0f} ms (99 %) at {live.rate} frames per second"
    table.add_row("annotation delay", delay)
    table.add_row("video delay", f"the same: {delay}; a picture waits for its markers")
    return table


def _performance(scores: dict[str, Any]) -> str:
    if "mean_dice" not in scores:
        return "the model file holds no scores"
    return f"mean Dice {scores['mean_dice']:.3f} on {scores.get('images', '?')} pictures (in the model file)"
