"""Values as people read them."""

from __future__ import annotations

from pathlib import Path

from polypstream.core.formatting import counted, quoted


def test_one_is_no_plural() -> None:
    assert [counted(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


def test_a_path_can_be_copied_into_a_shell() -> None:
    assert quoted(Path("results/a/report.html")) == "results/a/report.html"
    assert quoted(Path("my results/it's.html")) == """'my results/it'"'"'s.html'"""
