"""Plain words for what pydantic says about a wrong value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a value must be, by pydantic's type of error. The limits come from the context of the error.
EXPECTED = {
    "enum": "{expected}",
    "finite_number": "a number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than_equal": "at least {ge:.15g}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "int_type": "a whole number",
    "less_than_equal": "at most {le:.15g}",
    "literal_error": "{expected}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text, not empty",
    "string_type": "text",
}


def expected_value(problem: Mapping[str, Any]) -> str:
    """Say what a value must be.

    Args:
        problem: one of `errors()` of a ValidationError.

    Returns:
        Text such as `a whole number`; empty if there are no words for this type of error.
    """
    return EXPECTED.get(problem["type"], "").format(**problem.get("ctx", {}))
