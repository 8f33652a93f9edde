"""Every address that takes values says in plain words which one is wrong, in the same form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.web.serving import Served, served, settings_for

# Words of FastAPI and pydantic, which are for programmers.
JARGON = re.compile(r"Input should|Field required|String should|pattern|parse|UploadFile|value_error|dictionary|\^")
FITTING = {"id": "0123456789abcdef", "name": "report.html", "format": "coco"}
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("asked") / "served", settings_for(red_model)) as found:
        yield found


def said(answer: requests.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    text = answer.json()["detail"]
    assert isinstance(text, str)
    assert not JARGON.search(text), text
    return text


def values_of(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], list[dict[str, Any]]]]:
    """Method and address of each operation, one of its values, and all of them."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parameters = operation.get("parameters", [])
            for each in parameters:
                if not is_free_text(each["schema"]):
                    yield method, path, each, parameters


def is_free_text(schema: dict[str, Any]) -> bool:
    """Whether any text is a valid value, such as the name of a reader."""
    return schema.get("type") == "string" and not schema.keys() & {"pattern", "enum", "format", "const"}


def test_each_value_in_an_address_is_named(app: Served) -> None:
    description = app.get("/openapi.json").json()
    assert "HTTPValidationError" not in description["components"]["schemas"]
    tried = set()
    for method, path, wrong, parameters in values_of(description):
        values = {each["name"]: FITTING.get(each["name"], "1") for each in parameters} | {wrong["name"]: "wrong!"}
        queries = {each["name"]: values[each["name"]] for each in parameters if each["in"] == "query"}
        answer = requests.request(method, app.address + path.format(**values), params=queries, timeout=30)
        assert f"`{wrong['name']}` in the address must be " in said(answer), path
        tried.add(wrong["name"])
    of_results = {"id", "name", "track", "frame", "format", "every", "count", "only_reviewed", "replace"}
    assert tried == of_results | {"offset", "layer", "state", "number", "finding"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "the body is missing: send a JSON object"),
        ({"json": {}}, "`name` is missing: add it to the JSON body; `size` is missing: add it to the JSON body"),
        ({"json": []}, "the body is no JSON object"),
        ({"data": "name=a"}, "the body is no JSON object"),
        (
            {"data": b"{", "headers": {"Content-Type": "application/json"}},
            "the body is not valid JSON: see character 1",
        ),
        (
            {"json": {"name": "", "size": 0}},
            "`name` in the body must be text, not empty; `size` in the body must be at",
        ),
        ({"json": {"name": 1, "size": "x"}}, "`name` in the body must be text; `size` in the body must be a whole"),
        ({"json": {"name": "n" * 201, "size": 1.5}}, "`name` in the body must be text of at most 200 characters; "),
    ],
)
def test_what_is_wrong_in_json_is_named(app: Served, body: dict[str, Any], text: str) -> None:
    assert said(app.post("/api/uploads", **body)).startswith(text)


@pytest.mark.parametrize("path", ["/api/segment", "/api/recordings"])
@pytest.mark.parametrize("files", [None, {"other": b"content"}])
def test_a_form_without_the_file_says_how_to_send_one(app: Served, path: str, files: dict[str, bytes] | None) -> None:
    answer = app.post(path, files=files)
    assert "field `file`: send one as multipart/form-data" in said(answer, 422 if files or "segment" in path else 415)


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"Content-Type": "multipart/form-data"}, "the header Content-Type has no boundary"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "the body is not a multipart form"),
    ],
)
def test_a_form_that_is_none_is_explained(app: Served, headers: dict[str, str], text: str) -> None:
    assert said(app.post("/api/segment", data=b"no form", headers=headers), 400).startswith(text)


def test_a_missing_value_and_a_wrong_address_are_explained(app: Served) -> None:
    missing = requests.patch(f"{app.address}/api/uploads/{FITTING['id']}", timeout=30)
    assert said(missing) == "`offset` is missing: add it to the address, as ?offset=…"
    assert said(app.get("/api/nothing"), 404) == "there is nothing at this address; /api lists all addresses"
    assert "does not take this method" in said(app.get("/api/uploads"), 405)


def test_a_page_shows_the_same_words(app: Served) -> None:
    page = app.get("/api/recordings/nothing", headers=HTML)
    assert page.status_code == 422
    assert "<h1>The request is not valid</h1>" in page.text
    assert "`id` in the address must be the ID of a recording: 16 characters" in page.text
