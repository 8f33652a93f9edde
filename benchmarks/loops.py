"""What a user would write otherwise: a loop over a video's frames with the same model.

    python benchmarks/loops.py opencv|supervision VIDEO MODEL.onnx OUT.mp4 [cpu|openvino]

Both convert every frame to RGB, shrink it for the network, enlarge the mask and blend it in BGR, as the usual
examples do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from polypstream.inference.segmenter import Segmenter

GREEN = np.array([96, 255, 64], np.float32)


def main() -> None:
    """Run one loop to the end of the video."""
    loop, video, model, output, *provider = sys.argv[1:]
    segmenter = Segmenter(Path(model), *(provider or ["cpu"]))
    {"opencv": with_opencv, "supervision": with_supervision}[loop](video, output, segmenter)


def annotate(frame: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    """uint8 BGR [H, W, 3] -> the same with a tint where the model finds polyps."""
    size, rgb = segmenter.size, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    probability = segmenter.run(cv2.resize(rgb, (size, size))[None])[0]
    mask = cv2.resize(probability, frame.shape[1::-1]) >= round(255 * segmenter.card.threshold)
    frame[mask] = (0.7 * frame[mask] + 0.3 * GREEN).astype(np.uint8)
    return frame


def with_opencv(video: str, output: str, segmenter: Segmenter) -> None:
    """VideoCapture, the session, VideoWriter, one after the other."""
    reader = cv2.VideoCapture(video)
    size = int(reader.get(cv2.CAP_PROP_FRAME_WIDTH)), int(reader.get(cv2.CAP_PROP_FRAME_HEIGHT))
    writer = cv2.VideoWriter(output, cv2.VideoWriter.fourcc(*"mp4v"), reader.get(cv2.CAP_PROP_FPS), size)
    while True:
        there, frame = reader.read()
        if not there:
            break
        writer.write(annotate(frame, segmenter))
    writer.release()


def with_supervision(video: str, output: str, segmenter: Segmenter) -> None:
    """supervision's process_video: reading and writing in threads beside the callback."""
    import supervision

    supervision.process_video(video, output, lambda frame, _: annotate(frame, segmenter))


if __name__ == "__main__":
    main()
