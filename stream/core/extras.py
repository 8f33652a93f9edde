"""Optional parts, which the base installation does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polypstream.errors import MissingExtra


@contextmanager
def extra(name: str, needed_by: str = "this command") -> Iterator[None]:
    """Answer a missing optional package with the pip line that brings it.

    Args:
        name: of the optional part, as in pyproject.toml.
        needed_by: what cannot be done without it.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{needed_by} needs {error.name}, which is not installed; in the checkout of polypstream: "
            f"pip install -e '.[{name}]' -c constraints.txt"
        ) from error
