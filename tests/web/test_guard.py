"""What stands before every page and call, through a real server that serves nothing but the page on the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from polypstream.sinks.browser import Browser
from polypstream.web.live import LivePage
from polypstream.web.server import web

KNOWN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server that asks for a token."""
    with web([LivePage(None, Browser())], "127.0.0.1", 0, "secret") as found:
        yield found.partition("?")[0].rstrip("/")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/api", KNOWN, 200),
        ("GET", "/static/style.css", KNOWN, 200),
        ("GET", "/nothing", KNOWN, 404),
        ("POST", "/api", KNOWN, 405),
        ("GET", "/api", {}, 401),
        ("POST", "/api", KNOWN | {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/api", KNOWN | {"Host": "evil.example"}, 400),
        ("GET", "/?token=secret", {}, 303),
    ],
)
def test_every_answer_has_our_headers(
    address: str, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = requests.request(method, address + path, headers=headers, timeout=10, allow_redirects=False)
    assert answer.status_code == status
    policy = set(answer.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'self'",
    }
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),  # typed by its user
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": "{address}"}, False),
        ({"Origin": "{address}0"}, True),  # another port
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, False),  # the browser's word goes first
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_request_that_changes_something_comes_from_here(
    address: str, method: str, headers: dict[str, str], refused: bool
) -> None:
    told = {name: value.format(address=address) for name, value in headers.items()}
    answer = requests.request(method, f"{address}/api", headers=KNOWN | told, timeout=10)
    assert answer.status_code == (403 if refused else 405)
    assert requests.get(f"{address}/api", headers=KNOWN | told, timeout=10).status_code == 200


def test_the_token_becomes_a_cookie_that_only_our_pages_send(address: str) -> None:
    answer = requests.get(f"{address}/api?token=secret&more=1", timeout=10, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/api")
    cookie, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert cookie == "polypstream-token=secret"
    assert set(attributes) == {"HttpOnly", "Path=/", "SameSite=strict"}
    assert requests.get(f"{address}/api", headers={"Cookie": cookie}, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"Cookie": "polypstream-token=secre"},
        {"Cookie": "polypstream-token=secret2"},
        {"Cookie": "token=secret"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer s"},
        {"Authorization": "Bearer SECRET"},
        {"Authorization": "Basic secret"},
        {"X-Token": "secret"},
    ],
)
def test_nothing_but_the_whole_token_is_known(address: str, wrong: dict[str, str]) -> None:
    answer = requests.get(f"{address}/api", headers=wrong, timeout=10)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
