"""How things are said to people."""

from __future__ import annotations


def clock(seconds: float, decimals: int = 1) -> str:
    """h:mm:ss.s"""
    whole = round(seconds * 10**decimals) / 10**decimals
    width = 2 + (decimals + 1 if decimals else 0)
    return f"{int(whole // 3600)}:{int(whole % 3600 // 60):02}:{whole % 60:0{width}.{decimals}f}"


def words_of(error: Exception) -> str:
    """What went wrong, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
