"""What several files of these tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.serving import Served, served, settings_for


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> Iterator[Served]:
    """One server for the tests of a file that leave nothing behind. Some files have another one of the same name."""
    with served(tmp_path_factory.mktemp("served"), settings_for(red_model)) as found:
        yield found
