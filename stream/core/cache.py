"""The folder of what takes long to make and can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder polypstream/ in XDG_CACHE_HOME, which is ~/.cache by default (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polypstream"
