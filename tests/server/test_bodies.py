"""What no request may be: bodies, headers and paths, as a hostile client sends them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.doors import CANARY, SPAIN
from tests.support.http_server import CHAT_HEAD, Reply, Running, read_reply, running

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = "/v1/chat/completions"
POSTS = (CHAT, "/v1/completions", "/invocations", "/tokenize", "/detokenize",
         "/endpoints/demo/invocations")  # fmt: skip


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """A server whose limits are all lower than the parser's."""
    limits: dict[str, Any] = {
        "max_body_bytes": 2048,
        "max_header_bytes": 1024,
        "receive_timeout": 0.5,
        "max_messages": 3,
        "max_tools": 2,
        "max_n": 2,
        "max_stop": 2,
        "max_logit_bias": 2,
        "max_schema_chars": 200,
        "max_schema_depth": 4,
        "max_tokens": 5,
    }
    with running(**limits) as served:
        yield served


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON: Expecting value: line 1, column 1"),
        (b"{", "not valid JSON: Expecting property name"),
        (f'{{"messages": [{CANARY}'.encode(), "not valid JSON: Expecting value"),
        (b"[]", "must hold a JSON object; it holds a list"),
        (b'"text"', "it holds a string"),
        (b"null", "it holds null"),
        (b"\xff\xfe{}", "it is not text in UTF-8"),
        (b'{"prompt": "\xc3\x28"}', "it is not text in UTF-8"),
        (b'{"n": 1, "n": 2}', "it has the key 'n' twice in one object"),
        (b'{"temperature": NaN}', "it has the number NaN"),
        (b'{"temperature": -Infinity}', "it has the number -Infinity"),
        (b'{"temperature": 1e999}', "it has the number 1e999"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"n": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_no_json_object(server: Running, path: str, body: bytes, says: str) -> None:
    reply = server.post(path, body)
    assert reply.status == 400
    assert says in reply.error["message"]
    assert CANARY not in reply.body.decode()


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_refused_wherever_it_stands(server: Running, text: str) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
        (CHAT, {"messages": [{"role": text, "content": "x"}]}),
        (CHAT, {"messages": SPAIN, "stop": text, "max_tokens": 1}),
        (CHAT, {"messages": SPAIN, "regex": text}),
        (CHAT, {"messages": SPAIN, "model": text}),
        (CHAT, {"messages": SPAIN, text: 1}),
        (CHAT, {"messages": SPAIN, "user": {"a": [{text: 1}]}}),
        ("/v1/completions", {"prompt": text}),
        ("/tokenize", {"prompt": text}),
        ("/invocations", {"messages": [{"role": "user", "content": text}]}),
    ]
    for path, fields in bodies:
        reply = server.post(path, fields)
        assert reply.status == 400, (path, fields)
        assert "holds a lone surrogate (U+D" in reply.error["message"]
        assert reply.error["param"] in fields or text in fields


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("user", "x", 5), ("safety_identifier", "x", {}), ("prompt_cache_key", "x", []),
        ("store", False, "x"), ("metadata", {"a": "b", "c": None}, 5),
        ("metadata", {}, {"a": 5}), ("metadata", {}, {str(i): "" for i in range(17)}),
        ("best_of", 1, 2), ("num_beams", 1, 4), ("num_return_sequences", 1, 2),
        ("service_tier", "auto", "flex"),
    ],
)  # fmt: skip
def test_what_is_not_used_is_what_openai_takes(
    server: Running, name: str, good: Any, bad: Any
) -> None:
    for path, fields in ((CHAT, {"messages": SPAIN}), ("/v1/completions", {"prompt": "x"})):
        assert server.post(path, {**fields, "max_tokens": 1, name: good}).status == 200
        reply = server.post(path, {**fields, "max_tokens": 1, name: bad})
        assert (reply.status, reply.error["param"]) == (400, name)


def test_a_whole_surrogate_pair_is_a_character(server: Running) -> None:
    body = b'{"prompt": "\\ud83d\\ude00", "add_special_tokens": false}'
    tokens = server.post("/tokenize", body).json["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json == {"prompt": "\U0001f600"}


def test_a_nul_is_a_character_like_others(server: Running) -> None:
    assert server.chat({"messages": [{"role": "user", "content": "a\0b"}], "max_tokens": 1}).json


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "application/json; charset=utf-16", "application/jsonx"],
)  # fmt: skip
def test_a_body_of_another_kind(server: Running, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    reply = server.ask("POST", CHAT, json.dumps({"messages": SPAIN}).encode(), headers)
    assert reply.status == 415
    assert "Content-Type: application/json" in reply.error["message"]


def test_json_may_say_its_charset_and_may_not_be_compressed(server: Running) -> None:
    body = json.dumps({"messages": SPAIN, "max_tokens": 1}).encode()
    for kind in (
        "application/json; charset=utf-8",
        "APPLICATION/JSON;charset=UTF-8",
        'application/json; x=y; charset="utf-8"; z=1',
    ):
        assert server.ask("POST", CHAT, body, {"Content-Type": kind}).status == 200
    reply = server.post(CHAT, body, {"Content-Encoding": "gzip"})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


def padded(size: int) -> bytes:
    """A good request of so many bytes."""
    body = json.dumps({"messages": SPAIN, "max_tokens": 1}).encode()
    return body + b" " * (size - len(body))


def test_the_largest_body(strict: Running) -> None:
    assert strict.post(CHAT, padded(2048)).status == 200
    reply = strict.post(CHAT, padded(2049))
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert "2,048 bytes" in reply.error["message"]


def test_a_client_that_sends_megabytes_is_told_why_they_are_refused(strict: Running) -> None:
    # A server that does not read them breaks the connection, and the client never sees a reply.
    request = urllib.request.Request(
        strict.url + CHAT, padded(20_000_000), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    caught.value.close()
    assert caught.value.code == 413


def chunked(body: bytes, size: int = 512) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def raw(served: Running, request: bytes) -> Reply:
    """Send bytes, and read one response."""
    with served.connect() as connection:
        connection.sendall(request)
        return read_reply(connection)


def test_the_largest_body_in_chunks(strict: Running) -> None:
    head = CHAT_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert raw(strict, head + chunked(padded(2048))).status == 200
    assert raw(strict, head + chunked(padded(2049))).status == 413


def test_a_length_that_lies(strict: Running) -> None:
    assert raw(strict, CHAT_HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{").status == 413
    assert raw(strict, CHAT_HEAD + b"Content-Length: -5\r\n\r\n{}").status == 400
    reply = raw(strict, CHAT_HEAD + b"Content-Length: 50\r\n\r\n{")
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")


def test_headers_that_are_too_large(strict: Running) -> None:
    assert strict.get("/health", **{"X-Pad": "x" * 700}).status == 200
    for headers in ({"X-Pad": "x" * 1024}, {f"X-{n}": "x" for n in range(200)}):
        reply = strict.get("/v1/models", **headers)
        assert (reply.status, reply.error["code"]) == (431, "headers_too_large")
    assert strict.get("/v1/models?" + "x" * 1024).status == 431


def test_headers_that_never_end(strict: Running) -> None:
    with strict.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        reply = b"X-Pad: " + b"x" * 70_000
        connection.sendall(reply)
        assert read_reply(connection).status == 431
    with strict.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
        assert connection.recv(1) == b""  # after receive_timeout
    with strict.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        assert read_reply(connection).status == 200
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "request_",
    [b"nonsense\r\n\r\n", b"GET /health HTTP/9\r\n\r\n",
     b"GET /h\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
     CHAT_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"],
)  # fmt: skip
def test_what_is_no_http(server: Running, request_: bytes) -> None:
    reply = raw(server, request_)
    assert reply.status == 400
    assert "not valid HTTP" in reply.error["message"]
    assert server.get("/health").status == 200


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": SPAIN * 4}, "messages", "has 4 messages; this server takes at most 3"),
        ({"stop": ["a", "b", "c"]}, "stop", "has 3 stop sequences; this server takes at most 2"),
        ({"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias", "has 3 token ids"),
        ({"tools": [{}] * 3}, "tools", "has 3 tools"),
        ({"n": 3}, "n", "may be at most 2 on this server (max_n)"),
        ({"max_tokens": 6}, "max_tokens", "may be at most 5 on this server (max_tokens)"),
        ({"max_completion_tokens": 6}, "max_completion_tokens", "may be at most 5"),
        ({"max_length": 6}, "max_length", "may be at most 5"),
    ],
)
def test_limits_that_are_lower_than_the_parser_s(
    strict: Running, fields: dict[str, Any], param: str, says: str
) -> None:
    for path in (CHAT, "/invocations", "/endpoints/demo/invocations"):
        reply = strict.post(path, {"messages": SPAIN, **fields})
        assert (reply.status, reply.error["param"]) == (400, param)
        assert says in reply.error["message"]


def test_the_most_that_the_limits_allow(strict: Running) -> None:
    fields: dict[str, Any] = {
        "messages": SPAIN * 3, "stop": ["a", "b"], "logit_bias": {"1": 1, "2": 1}, "n": 2,
        "max_tokens": 5, "ignore_eos": True,
    }  # fmt: skip
    assert strict.chat(fields).json["usage"]["completion_tokens"] <= 10
    del fields["stop"], fields["max_tokens"], fields["n"]
    assert strict.chat(fields).json["usage"]["completion_tokens"] == 5  # where it says nothing


def schema(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        inner = {"properties": {"a": inner}}
    return inner


def test_schemas_that_are_too_large(strict: Running) -> None:
    def ask(schema: dict[str, Any], *, tool: bool) -> Reply:
        function = {"type": "function", "function": {"name": "f", "parameters": schema}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        fields = {"tools": [function]} if tool else {"response_format": form}
        return strict.chat({"messages": SPAIN, "max_tokens": 1, **fields})

    for tool, param in ((False, "response_format"), (True, "tools[0]")):
        assert ask(schema(1), tool=tool).status == 200
        deep = ask(schema(3), tool=tool)
        assert (deep.status, deep.error["param"]) == (400, param)
        assert "nested 7 levels deep; this server takes at most 4" in deep.error["message"]
        wide = ask({"description": "x" * 200}, tool=tool)
        assert "has 218 characters; this server takes at most 200" in wide.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/models", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/health/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/demo", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("BREW", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", f"/{CANARY}/%00/..%2f..%2fetc%2fpasswd", 404, "unknown_url"),
    ],
)
def test_paths_and_methods(server: Running, method: str, path: str, status: int, code: str) -> None:
    reply = server.ask(method, path)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert CANARY not in reply.body.decode()
    if status == 405:
        assert reply.headers["allow"] in ("GET", "POST")


@pytest.mark.parametrize("length", [80, 81, 100_000])
def test_the_name_of_a_field_is_told_and_cut(server: Running, length: int) -> None:
    error = server.chat({"messages": SPAIN, "x" * length: 1}).error
    shown = "x" * 80 if length == 80 else "x" * 77 + "..."
    assert error["param"] == shown
    assert error["message"].startswith(f"{shown} is not a parameter")


def test_a_model_that_is_not_served(server: Running) -> None:
    for path, fields in ((CHAT, {"messages": SPAIN}), ("/tokenize", {"prompt": "x"})):
        reply = server.post(path, {"model": "gpt-4", **fields})
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "There are: demo." in reply.error["message"]
    reply = server.chat({"model": 5, "messages": SPAIN})
    assert (reply.status, reply.error["param"]) == (400, "model")
