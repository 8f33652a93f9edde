"""The Segmenter: pictures of the network's size in, probability maps out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from pydantic import ValidationError

from polypstream.core.frame import Frame
from polypstream.errors import ModelError, ProviderError
from polypstream.inference.model_card import INPUT, OUTPUT, ModelCard
from polypstream.inference.providers import GPU, choose, open_session, warm_up


class Segmenter:
    """An ONNX Runtime session of one of our models, its execution provider, its batches.

    On a CPU pictures run one by one whatever the batch size: a larger batch gains nothing there, and the kernels
    chosen for it would change the last bit of a result.

    Args:
        model: path of a model file that keeps our contract.
        provider: "auto" takes the fastest present; any other is used or refused.
        batch_size: the most pictures given to a GPU at once.
        threads: CPU threads of the session; 0 leaves the number to the provider.
        cpu_model: taken in place of the model where the plain CPU provider runs it.

    Attributes:
        model: path of the file in use.
        card: what the model says about itself.
        notes: lines for the user, such as why a GPU is not used.

    Raises:
        ModelError: the file is missing, corrupt or not ours.
        ProviderError: the provider cannot be used on this machine.
    """

    def __init__(
        self,
        model: Path,
        provider: str = "auto",
        batch_size: int = 8,
        threads: int = 0,
        cpu_model: Path | None = None,
    ) -> None:
        if not model.is_file():
            raise ModelError(f"{model}: no such model file")
        present, self.notes = choose(provider)
        for number, self.provider in enumerate(present, 1):
            self.model = cpu_model or model if self.provider == "cpu" else model
            try:
                self._open(batch_size, threads)
                break
            except ProviderError as error:
                if number == len(present):
                    raise
                self.notes.append(f"{error}; the next best is used")

    def _open(self, batch_size: int, threads: int) -> None:
        self.batch_size = batch_size if self.provider in GPU else 1
        self._session = open_session(self.model, self.provider, threads)
        self.card = read_card(self._session, self.model)
        self.size = self.card.input_size
        shapes = [(count, self.size, self.size, 3) for count in range(1, self.batch_size + 1)]
        warm_up(self._session, self.provider, shapes)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Attach to each frame its probability map."""
        maps = self.segment([frame.model_input for frame in frames])
        for frame, probability in zip(frames, maps, strict=True):
            frame.probability = probability
        return frames

    def segment(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        """uint8 RGB pictures [size, size, 3] -> uint8 probability maps [size, size], 255 meaning 1."""
        maps: list[np.ndarray] = []
        for start in range(0, len(pictures), self.batch_size):
            batch = pictures[start : start + self.batch_size]
            maps.extend(self.run(batch[0][None] if len(batch) == 1 else np.stack(batch)))
        return maps

    def run(self, pictures: np.ndarray) -> np.ndarray:
        """One batch as it is: uint8 [N, size, size, 3] -> uint8 [N, size, size]."""
        maps: np.ndarray = self._session.run([OUTPUT], {INPUT: pictures})[0]
        return maps


def read_card(session: ort.InferenceSession, model: Path) -> ModelCard:
    """The metadata of a loaded model.

    Raises:
        ModelError: the model does not keep our contract.
    """
    signature = [(node.name, node.type, len(node.shape)) for node in (*session.get_inputs(), *session.get_outputs())]
    batch = session.get_inputs()[0].shape[0] if session.get_inputs()[0].shape else None
    if signature != [(INPUT, "tensor(uint8)", 4), (OUTPUT, "tensor(uint8)", 3)] or isinstance(batch, int):
        raise ModelError(f"{model}: not a polypstream model; make one with `polypstream export CHECKPOINT`")
    try:
        card = ModelCard.model_validate(session.get_modelmeta().custom_metadata_map)
    except ValidationError as error:
        fields = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise ModelError(f"{model}: its metadata lack or garble {fields}; export it again") from error
    if session.get_inputs()[0].shape[1:] != [card.input_size, card.input_size, 3]:
        raise ModelError(f"{model}: its metadata say {card.input_size} pixels, its input does not; export it again")
    return card
