"""What schemathesis cannot know by itself: how pictures of each type look. It is loaded by name, see test_openapi."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies
from PIL import Image

from polypstream.jobs.image import FORMATS


def register(kind: str) -> None:
    """Pictures of a format, made of the bytes of the size that they need."""

    def encode(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, kind)
        return file.getvalue()

    sides, levels = strategies.integers(1, 200), strategies.integers(0, 255)
    pictures = strategies.builds(encode, strategies.tuples(sides, sides), strategies.tuples(levels, levels, levels))
    schemathesis.openapi.media_type(f"image/{kind.lower()}", pictures)


for each in FORMATS:
    register(each)
