"""Keys: what lets a request in, and what does not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.serving import KEYS_VARIABLE
from mlflow_phi3_onnx.server.auth import read_keys
from tests.support.doors import SPAIN
from tests.support.http_server import Running, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "sk-canary-2718281828"
OTHER = "another-key-31337"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# keys\n{KEY}\n\n  {OTHER}  \n", encoding="utf-8")
    with running(api_key_file=str(file), cors_origins="https://chat.example.com") as served:
        yield served


def chat(served: Running, **headers: str) -> int:
    return served.post("/v1/chat/completions", {"messages": SPAIN, "max_tokens": 1}, headers).status


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {OTHER}", f"BEARER {KEY} "])
def test_a_known_key(guarded: Running, header: str) -> None:
    assert chat(guarded, Authorization=header) == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}", f"Bearer {KEY}x",
     f"Bearer {KEY.upper()}", "Bearer # keys", "Bearer \xe9\xe8", f"Bearer {'x' * 8000}",
     f"Bearer {KEY} {KEY}", f"Bearer {KEY},{OTHER}", f"Token {KEY}", "Bearer null"],
)  # fmt: skip
def test_any_other(guarded: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    reply = guarded.get("/v1/models", **headers)
    assert reply.status == 401
    assert reply.error["type"] == "authentication_error"
    assert reply.error["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert KEY[:-1] not in reply.body.decode()


def test_two_keys_are_none(guarded: Running) -> None:
    with guarded.connect() as connection:
        line = f"Authorization: Bearer {KEY}\r\n"
        connection.sendall(
            f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{line}{line}\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_every_route_but_the_probes_needs_a_key(guarded: Running) -> None:
    routes = json.loads(guarded.get("/openapi.json", Authorization=f"Bearer {KEY}").body)["paths"]
    assert {"/invocations", "/metrics", "/v1/completions"} <= set(routes)
    for path, methods in routes.items():
        for method in methods:
            reply = guarded.ask(method.upper(), path.replace("{", "").replace("}", ""))
            probe = path in {"/ping", "/health", "/ready"}
            assert (reply.status == 401) is not probe, path
    for path in ("/docs", "/openapi.json", "/nothing"):
        assert guarded.get(path).status == 401


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/health/../v1/models", "/health/%2e%2e/v1/models", "/v1/models?x=/health",
     "/v1/models#/health", "/%76%31/models", "/v1/models/", "/v1;/health/models", "/health%00",
     "/HEALTH", "http://x/health/../v1/models", "/v1/models%3f/health"],
)  # fmt: skip
def test_no_path_leads_around(guarded: Running, path: str) -> None:
    with guarded.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: health\r\n\r\n".encode())
        first = connection.recv(100).split(b"\r\n")[0]
    assert first.split()[1] in (b"401", b"400")


def test_no_header_leads_around(guarded: Running) -> None:
    tricks = {
        "Host": "127.0.0.1", "X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/health",
        "X-Rewrite-URL": "/health", "X-Forwarded-Prefix": "/health", "X-Api-Key": KEY,
        "Cookie": f"Authorization={KEY}", "X-HTTP-Method-Override": "OPTIONS",
    }  # fmt: skip
    assert guarded.get("/v1/models", **tricks).status == 401
    assert guarded.get(f"/v1/models?api_key={KEY}").status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200),
     ("[::1]", 200), ("evil.example.com", 403), ("evil.example.com:8000", 403),
     ("localhost.evil.example.com", 403), ("127.0.0.1.evil.example.com", 403), ("", 403),
     ("localhost:x", 403), ("evil.example.com:localhost", 403)],
)  # fmt: skip
def test_a_page_that_points_its_name_here_learns_nothing(
    server: Running, host: str, status: int
) -> None:
    for path in ("/v1/models", "/health"):
        reply = server.get(path, Host=host)
        assert reply.status == status
        assert status == 200 or reply.error["code"] == "host_not_allowed"


def test_names_of_the_server_can_be_set() -> None:
    with running(allowed_hosts="a.example.com, [::1]") as served:
        names = ("A.example.com:80", "[::1]:80", "localhost")
        assert [served.get("/ping", Host=name).status for name in names] == [200, 200, 403]


def test_a_browser_may_ask_before_it_has_a_key(guarded: Running) -> None:
    headers = {"Origin": "https://chat.example.com", "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization, content-type"
    reply = guarded.ask("OPTIONS", "/v1/chat/completions", headers=headers)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://chat.example.com"
    assert "authorization" in reply.headers["access-control-allow-headers"]
    headers["Origin"] = "https://evil.example.com"
    reply = guarded.ask("OPTIONS", "/v1/chat/completions", headers=headers)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert reply.headers["vary"].startswith("Origin")
    assert "access-control-allow-origin" not in reply.headers


def test_without_a_setting_no_page_may_ask(server: Running) -> None:
    reply = server.get("/v1/models", Origin="https://chat.example.com")
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_any_key_will_do_where_there_is_none(server: Running) -> None:
    assert chat(server, Authorization="Bearer anything") == 200


def test_metrics_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f"{KEY} {OTHER}")
    with running(open_metrics=True) as served:
        assert served.get("/metrics").status == 200
        assert served.get("/v1/models").status == 401
        assert chat(served, Authorization=f"Bearer {OTHER}") == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "keys is missing"), ("", "has no key in it"), ("# only\n", "has no key in it"),
     ("short12", "8 or more printable characters without blanks; this one has 7"),
     ("two words 123", "without blanks")],
)  # fmt: skip
def test_a_file_without_good_keys(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=says) as caught:
        read_keys(str(file))
    assert caught.value.param == "api_key_file"
    assert not text or text.strip() not in caught.value.message
    assert bool(read_keys(None)) is False


@pytest.mark.skipif(os.name == "nt", reason="files have other permissions there")
def test_a_file_tells_which_line_is_wrong_and_who_can_read_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nlong-enough\nshort\n", encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(InvalidRequestError, match="line 4: a key must be"):
        read_keys(str(file))
    file.write_text("long-enough\n", encoding="utf-8")
    for mode, warned in ((0o640, False), (0o644, True)):
        file.chmod(mode)
        read_keys(str(file))
        assert ("Every user of this machine can read" in caplog.text) is warned
