"""Single images: from a file to the model's input, and from a probability map to a mask."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from polypstream.core.geometry import FieldOfView, thumbnail_size
from polypstream.errors import SourceError, TooLarge
from polypstream.media.pictures import MAX_PIXELS, MAX_SIDE
from polypstream.stages.field_of_view import find_field_of_view
from polypstream.stages.findings import Rules, find_region

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")


def load_image(file: IO[bytes] | Path) -> np.ndarray:
    """Read an image and apply its EXIF orientation.

    Args:
        file: path or open file: JPEG, PNG, TIFF, WebP or BMP, with 8 or 16 bits. The first image is used if there are
            several.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        SourceError: the file is of another format, or damaged.
        TooLarge: the image has more than 40 million pixels, or more than 16,384 on a side.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TooLarge(f"{image.width}x{image.height} are more pixels than {MAX_PIXELS // 10**6} million")
            if max(image.size) > MAX_SIDE:
                raise TooLarge(f"{image.width}x{image.height}: a side may have at most {MAX_SIDE} pixels")
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"more pixels than {MAX_PIXELS // 10**6} million") from error
    except UnidentifiedImageError as error:
        raise SourceError(f"not an image that can be read; the formats are {', '.join(FORMATS)}") from error
    except SourceError:
        raise
    except Exception as error:  # Pillow may raise anything for a damaged file
        raise SourceError("the image is damaged or incomplete") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to an array.

    Args:
        image: the image.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        SourceError: the image is grey with 32 bits.
    """
    if image.mode in ("I", "F"):
        raise SourceError("a grey image of 32 bits; save it with 8 or 16")
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def view_of_image(picture: np.ndarray) -> FieldOfView:
    """Find the field of view of an image, as for a recording.

    Args:
        picture: uint8 RGB [H, W, 3].
    """
    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, thumbnail_size(width, height), interpolation=cv2.INTER_AREA)
    return find_field_of_view([thumbnail], width, height)


def resize_for_model(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize an image to the model's input: by area averaging if it shrinks, else by linear interpolation.

    Args:
        picture: uint8 [H, W, 3].
        size: side of the model's input in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    smaller = min(picture.shape[:2]) >= size
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def prepare_image(picture: np.ndarray, size: int) -> tuple[FieldOfView, np.ndarray]:
    """Find the field of view of an image and make the model's input from it.

    Args:
        picture: uint8 RGB [H, W, 3].
        size: side of the model's input in pixels.

    Returns:
        The field of view, and uint8 RGB [size, size, 3].
    """
    view = view_of_image(picture)
    return view, resize_for_model(view.crop(picture), size)


def findings_mask(probability: np.ndarray, view: FieldOfView, rules: Rules, shape: tuple[int, ...]) -> np.ndarray:
    """Mask of the findings in a probability map.

    Args:
        probability: uint8 [size, size], 255 meaning 1.
        view: field of view of the map, in pixels of the image.
        rules: rules that decide what is a finding.
        shape: height and width of the image.

    Returns:
        uint8 [H, W], 0 and 255.
    """
    mask = np.zeros(shape, np.uint8)
    region, _ = find_region(probability, view, rules)
    if region is not None:
        mask[region.slices] = region.mask
    return mask
