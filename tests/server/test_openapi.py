"""The OpenAPI document: valid, of the tables, and true."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from fastapi.openapi.models import OpenAPI

from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, Task
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from tests.support.doors import SPAIN
from tests.support.table import BAD, GOOD

if TYPE_CHECKING:
    from tests.support.http_server import Running


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    return server.get("/openapi.json").json


def body_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    body = document["paths"][path]["post"]["requestBody"]
    return body["content"]["application/json"]["schema"]


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPI.model_validate(document)
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(names) == len(set(names))
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            given = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert given == {part.strip("{}") for part in path.split("/") if part[:1] == "{"}


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    for methods in document["paths"].values():
        for operation in methods.values():
            parts = [operation.get("requestBody", {}), *operation["responses"].values()]
            for part in parts:
                for content in part.get("content", {}).values():
                    jsonschema.Draft202012Validator.check_schema(content["schema"])


def test_a_request_s_fields_are_those_of_the_table(document: dict[str, Any]) -> None:
    routes: list[tuple[str, Task, str]] = [
        ("/v1/chat/completions", CHAT, "messages"),
        ("/v1/completions", COMPLETIONS, "prompt"),
    ]
    for path, task, field in routes:
        told = set(body_of(document, path)["properties"])
        table = PARAMETERS[task].values()
        assert told == {field, *(row.name for row in table if row.status != "refused")}


def test_it_lets_good_requests_through_and_no_plain_bad_number(document: dict[str, Any]) -> None:
    schema = body_of(document, "/v1/chat/completions")
    for case in GOOD:
        jsonschema.validate({"messages": SPAIN, **case.fields}, schema)
    numbers = ("temperature", "top_p", "n", "max_tokens", "min_tokens")
    bad = [c for c in BAD if c.param in numbers and "the model's" not in c.says]
    known = [c for c in bad if c.says.startswith(("a number", "an integer")) or "got" in c.says]
    assert len(known) > 10
    for case in known:
        assert not jsonschema.Draft202012Validator(schema).is_valid(case.fields), case


def test_the_page_tells_the_same_and_loads_nothing(
    server: Running, document: dict[str, Any]
) -> None:
    reply = server.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    page = reply.body.decode()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}</code>" in page
            assert escape(operation["summary"]) in page
    for name in body_of(document, "/v1/chat/completions")["properties"]:
        assert f"<code>{name}</code>" in page
    assert re.findall(r'(?:href|src|action)="([^"]*)', page) == ["data:,", "openapi.json"]
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = reply.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert not re.search(r"<script|style=|@import|url\(|//[a-z]", page)
    assert server.post("/docs", {}).status == 405
