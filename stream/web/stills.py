"""Uploaded sets of images. The upload is one file, the images one after another; a list has their names and sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, count
from pathlib import Path, PurePath
from typing import NamedTuple

from polypstream.core.files import write_atomically, writing
from polypstream.web.zipped import folder_name

# Longest name of a file without its ending, in bytes. File systems allow 255, and results have longer endings.
LONGEST_STEM = 200
CHUNK = 1 << 20


class UploadedImage(NamedTuple):
    """An image of a set.

    Attributes:
        name: its file name on the server.
        size: in bytes.
    """

    name: str
    size: int


def file_names(names: Sequence[str]) -> list[str]:
    """Names for files in one folder, which every file system allows. Of equal names the later ones get their place.

    Args:
        names: original names of images.
    """
    taken: set[str] = set()
    found = []
    for place, name in enumerate(names, 1):
        stem = folder_name(name).encode()[:LONGEST_STEM].decode(errors="ignore")
        ending = PurePath(name).suffix
        candidates = chain([stem], (f"{stem}-{number}" for number in count(place)))
        unique = next(each for each in candidates if each.casefold() not in taken)  # some file systems ignore case
        taken.add(unique.casefold())
        found.append(f"{unique}{ending}")
    return found


def write_list(path: Path, images: Sequence[UploadedImage]) -> None:
    """Store which images an upload has.

    Args:
        path: of the list.
        images: the images, in the order of the upload.

    Raises:
        OutputError: it cannot be written.
    """
    with write_atomically(path) as unfinished:
        unfinished.write_text(json.dumps(images))


@lru_cache(maxsize=256)
def read_list(path: Path) -> tuple[UploadedImage, ...]:
    """Read which images an upload has. The list does not change.

    Args:
        path: of the list.

    Returns:
        The images; none: it is a recording.
    """
    try:
        return tuple(UploadedImage(*image) for image in json.loads(path.read_text()))
    except FileNotFoundError:
        return ()


def unpack(upload: Path, images: Sequence[UploadedImage], folder: Path) -> list[Path]:
    """Write the images of an upload to files.

    Args:
        upload: the upload.
        images: its images.
        folder: for the files; it is created, and what is in it is deleted.

    Returns:
        The files.

    Raises:
        OutputError: they cannot be written.
    """
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with upload.open("rb") as source:
            for image in images:
                with (folder / image.name).open("wb") as target:
                    left = image.size
                    while left and (chunk := source.read(min(left, CHUNK))):
                        target.write(chunk)
                        left -= len(chunk)
    return [folder / image.name for image in images]
