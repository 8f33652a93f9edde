"""Optional dependencies, which the base installation does not contain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polypstream.errors import MissingExtra


@contextmanager
def extra(name: str, needed_by: str = "this command") -> Iterator[None]:
    """Raise MissingExtra, with the pip command that installs the package, if the block imports a missing package.

    Args:
        name: name of the optional dependency group in pyproject.toml.
        needed_by: what needs it, for the message.

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
