"""Objects that every job needs, made from the settings: segmenter, field of view, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.pipeline import QUEUE, Stage
from polypstream.core.protocols import Source
from polypstream.core.time_range import TimeRange
from polypstream.errors import SettingsError
from polypstream.inference.model_card import model_file, shipped_for_cpus
from polypstream.inference.nv12 import Nv12Graph
from polypstream.inference.segmenter import Segmenter
from polypstream.media.nvdec import GpuDecoder, Nvdec
from polypstream.sources.deidentified import Deidentified
from polypstream.sources.excerpt import Excerpt
from polypstream.sources.recording import Recording
from polypstream.stages.every_nth import EveryNth
from polypstream.stages.field_of_view import ViewCropper, find_field_of_view
from polypstream.stages.findings import FindingsTracker, choose_rules
from polypstream.stages.gpu_field_of_view import GpuViewCropper
from polypstream.stages.overlay import Overlay
from polypstream.stages.quality import QualityInspector
from polypstream.stages.smoothing import TemporalSmoother

# Threads that estimate the motion between frames where a GPU runs the model.
MOTION_THREADS = 4
# Frames that may wait for the encoder there; a frame of 1920x1080 has 3 MB.
AHEAD = 60


def with_inference(settings: Settings, **changes: str | int | None) -> Settings:
    """Settings with other values in the section `inference`.

    Args:
        settings: the settings.
        changes: values by name; None: keep the settings' value.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return settings.model_copy(update={"inference": settings.inference.model_copy(update=given)})


def with_model(settings: Settings, model: Path | None) -> Settings:
    """Settings with another model.

    Args:
        settings: the settings.
        model: the ONNX file; None: keep the settings' model.
    """
    return with_inference(settings, model=None if model is None else str(model))


def with_deidentification(settings: Settings) -> Settings:
    """Settings with de-identification switched on.

    Args:
        settings: the settings.
    """
    return settings.model_copy(update={"deidentify": settings.deidentify.model_copy(update={"enabled": True})})


def make_segmenter(settings: Settings) -> Segmenter:
    """Make the segmenter that the settings ask for.

    Args:
        settings: settings of the run.

    Raises:
        ModelError: the model file is missing, damaged, or was not made by polypstream.
        ProviderError: the provider does not work on this machine.
    """
    inference = settings.inference
    return Segmenter(
        model_file(inference.model),
        inference.provider,
        inference.batch_size,
        inference.threads,
        shipped_for_cpus(inference.model),
        inference.device,
        inference.cuda_graph,
    )


def choose_field_of_view(source: Source, settings: Settings) -> FieldOfView:
    """Find the field of view as the settings ask.

    Args:
        source: the recording.
        settings: they give a box, "full", or "auto" to find the field of view in the frames.

    Raises:
        SettingsError: the box in the settings reaches outside the frame.
    """
    width, height = source.format.width, source.format.height
    wanted = settings.view.field_of_view
    if wanted == "auto":
        return find_field_of_view(source.thumbnails(), width, height)
    if wanted == "full":
        return FieldOfView(0, 0, width, height)
    left, top, right, bottom = wanted[0], wanted[1], wanted[0] + wanted[2], wanted[1] + wanted[3]
    if right > width or bottom > height:
        raise SettingsError(f"view.field_of_view {list(wanted)}: reaches outside {source.name}, {width}x{height}")
    return FieldOfView.around(left, top, right, bottom)


def restricted(
    source: Source,
    view: FieldOfView,
    settings: Settings,
    name: str | None = None,
    times: TimeRange | None = None,
    on_activity: Callable[[object], None] = lambda _: None,
) -> Source:
    """The source with nothing but what may be processed: a range of time, de-identified if the settings say so.

    Args:
        source: the recording.
        view: its field of view.
        settings: settings of the run.
        name: name that replaces its own if it is de-identified.
        times: the range; None: all of it.
        on_activity: called often with a value that changes, while frames before the range are decoded.

    Raises:
        SourceError: there is no frame in the range, or the field of view of a de-identified recording was not found.
    """
    since = None
    if times is not None:
        assert isinstance(source, Recording)
        source.limit(times)
        since, _ = times.pts(source.format.time_base)
    if settings.deidentify.enabled:
        # It also looks at the frames just before the range: if they show the outside of the body, the first ones in it
        # are blanked.
        source = Deidentified(source, view, settings, name, since)
    return source if times is None else Excerpt(source, times, on_activity)


@dataclass(frozen=True, slots=True)
class Stages:
    """Stages of one recording, in processing order.

    Attributes:
        crop: crops to the field of view and scales to the model's input.
        quality: rates the quality of the frame.
        segment: runs the model, on all frames or on some.
        batch_size: the largest batch of `segment`.
        smooth: smooths the probability map over time; None if the settings switch it off.
        findings: turns the probability map into regions, outlines and tracks.
        overlay: draws them.
    """

    crop: ViewCropper | GpuViewCropper
    quality: QualityInspector
    segment: Stage[Frame]
    batch_size: int
    smooth: TemporalSmoother | None
    findings: FindingsTracker
    overlay: Overlay

    @property
    def at_once(self) -> int:
        """Frames that the stages around the model take at once. On a GPU this saves threads from waking each other.

        On a CPU the model takes frames one by one. There, fewer frames on the way mean that less is lost by a kill.
        """
        return min(2 * QUEUE, self.batch_size)

    def ahead(self, rate: Fraction) -> int:
        """Return the number of frames that may wait for the encoder. A kill loses them, so they last a second at most.

        While a marked group is encoded, a GPU goes on with the next ones.

        Args:
            rate: of the recording, in frames per second.
        """
        frames = int(rate) if self.batch_size > 1 else min(QUEUE, int(rate / 2))
        return max(1, min(AHEAD, frames))

    @property
    def analysis(self) -> list[tuple[str, Stage[Frame], int]]:
        """Name, stage and batch size of each stage except the overlay."""
        stages: list[tuple[str, Stage[Frame], int]] = [
            ("crop", self.crop, 1),
            ("quality", self.quality, self.at_once),
            ("segment", self.segment, self.batch_size),
        ]
        if self.smooth is not None:
            stages.append(("smooth", self.smooth, self.at_once))
        return [*stages, ("findings", self.findings, self.at_once)]

    def __iter__(self) -> Iterator[tuple[str, Stage[Frame], int]]:
        """Yield name, stage and batch size of each stage."""
        yield from self.analysis
        yield "overlay", self.overlay, self.at_once


def make_overlay(settings: Settings) -> Overlay:
    """Make the overlay for recordings and images.

    Args:
        settings: settings of the run.
    """
    overlay = settings.overlay
    return Overlay(overlay, "number" if overlay.labels == "auto" else overlay.labels)


def decode_on_gpu(source: Source, segmenter: Segmenter, settings: Settings) -> GpuDecoder | None:
    """Let a recording be decoded on the GPU that runs the model, if the settings want it and it can be done.

    Args:
        source: the recording; why it is decoded on the CPU is added to its notes.
        segmenter: runs the model.
        settings: settings of the run.

    Returns:
        The decoder; None: the CPU decodes.

    Raises:
        SettingsError: the settings name the GPU, and it cannot decode the recording.
    """
    wanted = settings.inference.decoder
    if wanted == "cpu" or (wanted == "auto" and not segmenter.on_cuda):
        return None
    gpu = Nvdec(segmenter.device)
    if not segmenter.on_cuda:
        why = f"nvdec needs the provider cuda or tensorrt, and the provider is {segmenter.provider}"
    elif settings.deidentify.enabled:
        why = "de-identification changes pictures in the memory of the CPU"
    elif not isinstance(source, Recording):
        why = "nvdec decodes recordings"
    else:
        why = source.decode_on(gpu)
    if not why:
        return gpu
    if wanted == "nvdec":
        raise SettingsError(f"inference.decoder nvdec: {source.name}: {why}; choose auto or cpu")
    source.notes.append(f"decoded on the CPU: {why}")
    return None


def _make_cropper(view: FieldOfView, segmenter: Segmenter, gpu: GpuDecoder | None) -> ViewCropper | GpuViewCropper:
    if gpu is None:
        return ViewCropper(view, segmenter.size)
    graph = Nv12Graph(view, segmenter.size, segmenter.provider, segmenter.device)
    return GpuViewCropper(view, segmenter.size, graph, gpu.surface_format)


def make_stages(view: FieldOfView, segmenter: Segmenter, settings: Settings, gpu: GpuDecoder | None = None) -> Stages:
    """Make the stages that the settings ask for.

    Args:
        view: field of view of the recording.
        segmenter: runs the model; may be shared by several recordings.
        settings: settings of the run.
        gpu: the GPU that decodes the recording; None: the CPU does.
    """
    card, findings, every = segmenter.card, settings.findings, settings.inference.every
    # On a CPU, frames come one by one, and the model uses all cores. The threads end with the stages.
    workers = ThreadPoolExecutor(MOTION_THREADS) if segmenter.batch_size > 1 else None
    return Stages(
        crop=_make_cropper(view, segmenter, gpu),
        quality=QualityInspector(),
        segment=segmenter if every == 1 else EveryNth(segmenter, every, workers),
        batch_size=segmenter.batch_size,
        smooth=TemporalSmoother(every == 1, workers) if findings.steady else None,
        findings=FindingsTracker(choose_rules(findings, card.threshold, card.peak), findings.steady),
        overlay=make_overlay(settings),
    )
