"""Single pictures: what can be read, how it is turned, and what is said of it."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from polypstream.core.geometry import FieldOfView
from polypstream.errors import SourceError, TooLarge
from polypstream.jobs.image import MAX_PIXELS, MAX_SIDE, load_image, prepare_image
from polypstream.jobs.predictions import ImageResult
from polypstream.stages.findings import Rules

RULES = Rules(threshold=0.5, peak=0.8, smallest=0.001)


def picture() -> np.ndarray:
    """uint8 RGB [120, 160, 3] whose corners differ."""
    rgb = np.full((120, 160, 3), 90, np.uint8)
    rgb[:60, :80] = (200, 30, 30)
    rgb[60:, 80:] = (30, 30, 200)
    return rgb


def packed(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 12), ("PNG", 0), ("TIFF", 0), ("WEBP", 12), ("BMP", 0)])
def test_every_format_is_read(kind: str, tolerance: int) -> None:
    found = load_image(packed(Image.fromarray(picture()), kind))
    assert found.dtype == np.uint8
    assert np.median(np.abs(found.astype(int) - picture())) <= tolerance
    assert found.shape == (120, 160, 3)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (6, lambda stored: np.rot90(stored, -1)),
        (8, lambda stored: np.rot90(stored)),
    ],
)
def test_the_orientation_in_exif_is_honoured(orientation: int, upright: Callable[[np.ndarray], np.ndarray]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (load_image(packed(Image.fromarray(picture()), "PNG", exif=exif)) == upright(picture())).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_other_kinds_of_pixels_become_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    stored = Image.fromarray(picture()).convert(mode)
    assert np.array_equal(load_image(packed(stored, kind)), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_brightness(kind: str) -> None:
    grey = np.linspace(0, 65535, 160 * 120).reshape(120, 160).astype(np.uint16)
    found = load_image(packed(Image.fromarray(grey), kind))
    assert (found == (grey >> 8)[..., None]).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_of_grey_are_refused(kind: type) -> None:
    """Whether they go to 1, 255 or 65535 nobody says."""
    with pytest.raises(SourceError, match="save it with 8 or 16"):
        load_image(packed(Image.fromarray(np.zeros((120, 160), kind)), "TIFF"))


def test_of_several_pictures_the_first_is_taken() -> None:
    first, second = Image.fromarray(picture()), Image.new("RGB", (8, 8))
    assert (load_image(packed(first, "TIFF", save_all=True, append_images=[second])) == picture()).all()


@pytest.mark.parametrize("content", [b"", b"no picture", b"<svg/>", b"GIF89a" + bytes(20), b"%PDF-1.4"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(SourceError, match="not an image that can be read; the formats are JPEG"):
        load_image(io.BytesIO(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_half_a_file_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    whole = packed(Image.fromarray(noise), kind).getvalue()
    with pytest.raises(SourceError):
        load_image(io.BytesIO(whole[: len(whole) // 2]))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_more_pixels_than_may_be_are_refused_before_they_are_read(kind: str) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    file = packed(Image.new("1", (side, side)), kind)
    with pytest.raises(TooLarge, match="more pixels than 40 million"):
        load_image(file)


def test_a_longer_side_than_may_be_is_refused() -> None:
    assert load_image(packed(Image.new("RGB", (MAX_SIDE, 1)), "TIFF")).shape == (1, MAX_SIDE, 3)
    with pytest.raises(TooLarge, match="1x16385: a side may have at most 16384 pixels"):
        load_image(packed(Image.new("RGB", (1, MAX_SIDE + 1)), "TIFF"))


def test_a_claim_of_billions_of_pixels_is_refused() -> None:
    content = bytearray(packed(Image.new("RGB", (8, 8)), "BMP").getvalue())
    content[18:26] = np.array([60_000, 60_000], "<i4").tobytes()
    with pytest.raises(TooLarge):
        load_image(io.BytesIO(bytes(content)))


def blobs() -> np.ndarray:
    """A probability map with a sure blob, an unsure one and a tiny one."""
    probability = np.zeros((128, 128), np.uint8)
    cv2.circle(probability, (40, 40), 15, 250, -1)
    cv2.circle(probability, (90, 90), 15, 180, -1)
    probability[10, 100] = 255
    return probability


def test_findings_mask_and_map_say_the_same() -> None:
    view = FieldOfView(40, 20, 500, 400)
    result = ImageResult(np.zeros((480, 640, 3), np.uint8), view, blobs(), RULES)
    mask, probability = result.mask, result.probability
    (finding,) = result.findings
    assert mask.shape == probability.shape == (480, 640)
    assert (mask.dtype, probability.dtype) == (np.dtype(bool), np.dtype(np.float32))
    assert finding.confidence == pytest.approx(250 / 255)
    assert finding.box == cv2.boundingRect(mask.astype(np.uint8))
    drawn = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [finding.polygon], 1)
    assert (drawn == mask).all()
    assert (probability[mask] >= 128 / 255).all()
    # No finding, but on the map.
    assert probability[round(20 + 90 * 400 / 128), round(40 + 90 * 500 / 128)] == np.float32(180) / 255
    outside = np.ones_like(mask, bool)
    outside[20:420, 40:540] = False
    assert not probability[outside].any()


def test_where_nothing_is_nothing_is_said() -> None:
    image = np.full((48, 64, 3), 90, np.uint8)
    result = ImageResult(image, FieldOfView(0, 0, 64, 48), np.zeros((128, 128), np.uint8), RULES)
    assert result.findings == []
    assert not result.mask.any()
    assert not result.probability.any()
    assert (result.plot() == image).all()


def test_what_the_network_sees_is_the_view_at_its_size() -> None:
    rgb = np.zeros((300, 400, 3), np.uint8)
    rgb[30:270, 60:340] = (150, 100, 90)
    view, shown = prepare_image(rgb, 128)
    assert abs(view.x - 60) <= 4
    assert abs(view.width - 280) <= 8
    assert shown.shape == (128, 128, 3)
    assert (shown[64, 64] == (150, 100, 90)).all()
