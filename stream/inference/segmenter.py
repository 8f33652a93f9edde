"""Segmenter: runs a model on images of its input size, and returns probability maps."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from pydantic import ValidationError

from polypstream.errors import ModelError, ProviderError
from polypstream.inference.bound import BoundModel
from polypstream.inference.cpu import fastest_first
from polypstream.inference.model_card import INPUT, OUTPUT, ModelCard
from polypstream.inference.providers import (
    FULL_NAMES,
    GPU,
    Provider,
    SessionSettings,
    choose,
    has_tensorrt_engine,
    open_session,
    warm_up,
)

if TYPE_CHECKING:
    from polypstream.core.frame import Frame  # needs OpenCV and FFmpeg, which `polypstream inspect` does without

log = logging.getLogger(__name__)
NO_ENGINE = (
    "tensorrt is not used: it has not built its engine for this model and inference.batch_size; "
    "inference.provider=tensorrt builds it, once, in some minutes"
)


class Segmenter:
    """A polypstream model in an ONNX Runtime session.

    On a CPU, images run one by one whatever the batch size is. A larger batch is not faster there, and the kernels
    chosen for it would change the last bit of a result.

    Args:
        model: path of a model file.
        provider: "auto" selects the fastest available one; any other is used or refused. On a CPU, which one is
            faster is measured at the first use of a model and remembered (`polypstream.inference.cpu`).
        batch_size: the largest batch on a GPU.
        threads: CPU threads of the session; 0 leaves the number to the provider.
        on_cpu: model files that take the place of `model` with the providers of CPUs.
        device: number of the GPU, from 0.
        cuda_graph: replay recorded work on the provider cuda.

    Attributes:
        model: path of the file in use.
        provider: the provider in use.
        device: number of the GPU, from 0.
        batch_size: the largest batch in use.
        card: the model's metadata.
        size: height and width of the model's input in pixels.
        notes: information for the user, such as why a GPU is not used.

    Raises:
        ModelError: the file is missing, corrupt or not a polypstream model.
        ProviderError: the provider cannot be used on this machine.
    """

    def __init__(
        self,
        model: Path,
        provider: str = "auto",
        batch_size: int = 8,
        threads: int = 0,
        on_cpu: Mapping[Provider, Path] | None = None,
        device: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        _check_file(model)
        present, self.notes = choose(provider)
        if provider == "auto" and "tensorrt" in present and not has_tensorrt_engine(model, batch_size):
            present.remove("tensorrt")
            self.notes.append(NO_ENGINE)
        models = {each: (on_cpu or {}).get(each, model) for each in present}
        present = _fastest_first(models, threads)
        self.device = device
        self._prepared, self._preparing = set[int](), threading.Lock()
        for number, self.provider in enumerate(present, 1):
            self.model = models[self.provider]
            try:
                self._open(SessionSettings(threads, device, batch_size, cuda_graph))
                break
            except ProviderError as error:
                if number == len(present):
                    raise
                self.notes.append(f"{error}; the next best is used")

    def _open(self, settings: SessionSettings) -> None:
        if settings.cuda_graph and self.provider != "cuda":
            raise ProviderError(f"inference.cuda_graph: works with the provider cuda, not with {self.provider}")
        self._settings = settings
        self.batch_size = settings.batch_size if self.provider in GPU else 1
        self._session = open_session(self.model, self.provider, settings)
        self.card = read_card(self._session, self.model)
        self.size = self.card.input_size
        self._bound = BoundModel("cuda", settings.device) if self.on_cuda else None
        self._prepare(self.batch_size, self._session)
        if settings.cuda_graph:
            # A CUDA graph is recorded in the first run. This must be over before other threads use the GPU.
            self.prepare_one()
        log.debug("%s: runs on %s, %d images at once", self.model, self.provider, self.batch_size)

    def _prepare(self, batch: int, session: ort.InferenceSession) -> None:
        """Let batches of a size have a session, and run it once."""
        if self._bound is not None:
            self._bound.add(batch, self.size, session)
        warm_up(self.run, self.provider, [(batch, self.size, self.size, 3)])
        self._prepared.add(batch)

    def prepare_one(self) -> None:
        """Make single images faster from now on. Without this, a GPU may fill them up to a whole batch.

        Raises:
            ProviderError: the provider fails.
        """
        with self._preparing:
            if 1 not in self._prepared:
                # CUDA's sessions get batches of one size only, see BoundModel.
                own = open_session(self.model, self.provider, self._settings) if self.provider == "cuda" else None
                self._prepare(1, own or self._session)

    @property
    def on_cuda(self) -> bool:
        """Whether the session takes buffers in the memory of an NVIDIA GPU, as CUDA and TensorRT do."""
        return self._session.get_providers()[0] in (FULL_NAMES["cuda"], FULL_NAMES["tensorrt"])

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set the probability map of each frame.

        Args:
            frames: frames with `model_input`.

        Returns:
            The same frames.
        """
        maps = self.segment([frame.model_input for frame in frames])
        for frame, probability in zip(frames, maps, strict=True):
            frame.probability = probability
        return frames

    def segment(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        """Run the model on any number of images.

        Args:
            pictures: uint8 RGB [size, size, 3] each.

        Returns:
            uint8 [size, size] each, 0..255 meaning 0..1.
        """
        maps: list[np.ndarray] = []
        for start in range(0, len(pictures), self.batch_size):
            maps.extend(self.run(pictures[start : start + self.batch_size]))
        return maps

    def segment_one(self, picture: np.ndarray) -> np.ndarray:
        """Run the model on one image.

        Args:
            picture: uint8 RGB [size, size, 3].

        Returns:
            uint8 [size, size], 0..255 meaning 0..1.
        """
        self.prepare_one()
        return self.segment([picture])[0]

    def run(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Run the model on one batch.

        Args:
            pictures: uint8 RGB [size, size, 3] each; at most `batch_size`.

        Returns:
            uint8 [N, size, size], 0..255 meaning 0..1.
        """
        if self._bound is not None:
            return self._bound.run(pictures)
        batch = pictures[0][None] if len(pictures) == 1 else np.asarray(pictures)
        maps: np.ndarray = self._session.run([OUTPUT], {INPUT: batch})[0]
        return maps


def _fastest_first(models: Mapping[Provider, Path], threads: int) -> list[Provider]:
    """A GPU is faster than any CPU; which provider is faster on a CPU is measured."""
    if len(models) > 1 and GPU.isdisjoint(models):
        with contextlib.suppress(ProviderError):  # it is raised again when the provider is used
            return fastest_first(models, threads)
    return list(models)


def inspect_model(model: Path) -> ModelCard:
    """Read the metadata of a model file.

    Args:
        model: path of the file.

    Raises:
        ModelError: the file is missing, corrupt or not a polypstream model.
    """
    _check_file(model)
    return read_card(open_session(model, "cpu"), model)


def _check_file(model: Path) -> None:
    if not model.is_file():
        raise ModelError(f"{model}: no such model file")


def read_card(session: ort.InferenceSession, model: Path) -> ModelCard:
    """Read the metadata of a loaded model.

    Args:
        session: the model's session.
        model: path of the file, for the message.

    Returns:
        The metadata.

    Raises:
        ModelError: the model does not fulfil the contract of `model_card`.
    """
    signature = [(node.name, node.type, len(node.shape)) for node in (*session.get_inputs(), *session.get_outputs())]
    batch = session.get_inputs()[0].shape[0] if session.get_inputs()[0].shape else None
    if signature != [(INPUT, "tensor(uint8)", 4), (OUTPUT, "tensor(uint8)", 3)] or isinstance(batch, int):
        raise ModelError(f"{model}: not a polypstream model; make one with `polypstream export` or `wrap`")
    try:
        card = ModelCard.model_validate(session.get_modelmeta().custom_metadata_map)
    except ValidationError as error:
        fields = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise ModelError(f"{model}: its metadata have no valid value for {fields}; export it again") from error
    if session.get_inputs()[0].shape[1:] != [card.input_size, card.input_size, 3]:
        raise ModelError(f"{model}: its metadata say {card.input_size} pixels, its input does not; export it again")
    return card
