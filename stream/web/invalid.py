"""Explains in plain words what is wrong in a request, in place of the words of FastAPI, pydantic and Starlette."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polypstream.core.validation import expected_value
from polypstream.web.library import ID_PATTERN

# What texts with a pattern must be.
FORMS = {ID_PATTERN: "the ID of a recording: 16 characters from 0-9 and a-f. GET /api/recordings lists all IDs"}
NO_FILE = "the form has no file in a field `file`: send one as multipart/form-data, for instance curl -F file=@NAME"
JSON_BODY = "send a JSON object with the header Content-Type: application/json"
# Messages of the libraries about bodies that cannot be read.
BODIES = {
    "There was an error parsing the body": f"the body cannot be read: {JSON_BODY}",
    "Missing boundary in multipart.": "the header Content-Type has no boundary: let your HTTP library set this header",
    "Invalid multipart data.": "the body is not a multipart form with the boundary of its header Content-Type",
}


def explain_invalid(problems: Sequence[Mapping[str, Any]]) -> str:
    """Explain the values of a request that are missing or not valid, without repeating them.

    Args:
        problems: `errors()` of FastAPI's RequestValidationError.

    Returns:
        Text that names each value, and says what it must be.
    """
    return "; ".join(dict.fromkeys(map(_explain, problems)))


def _explain(problem: Mapping[str, Any]) -> str:
    kind, (part, *names) = problem["type"], problem["loc"]
    if kind == "json_invalid":
        return f"the body is not valid JSON: see character {names[0]}"
    if not names:
        return f"the body is missing: {JSON_BODY}" if kind == "missing" else f"the body is no JSON object: {JSON_BODY}"
    name = ".".join(map(str, names))
    if (part, name) == ("body", "file"):
        return NO_FILE
    if kind == "missing":
        return f"`{name}` is missing: add it to the " + ("JSON body" if part == "body" else f"address, as ?{name}=…")
    expected = FORMS[problem["ctx"]["pattern"]] if kind == "string_pattern_mismatch" else expected_value(problem)
    return f"`{name}` in the {'body' if part == 'body' else 'address'} must be {expected or 'as /api describes it'}"
