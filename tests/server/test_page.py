"""The page at ``/``, as it is sent."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.server.page import PAGE
from tests.support.http_server import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.http_server import Running


def test_it_is_one_file_that_may_run_only_its_own_script(server: Running) -> None:
    reply = server.get(PAGE)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    page = reply.body.decode()
    assert not re.search(r"\s(src|action|on\w+)=|style=\"|@import|url\(|//[a-z]+\.", page)
    assert re.findall(r'href="([^"]*)', page) == ["data:,"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page)
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(text) > 1000
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_its_methods(server: Running) -> None:
    whole, head = server.get(PAGE), server.ask("HEAD", PAGE)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    refused = server.post(PAGE, {})
    assert refused.status == 405
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert PAGE not in server.get("/openapi.json").json["paths"]


def test_it_needs_no_key_and_what_it_calls_does(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-the-page", encoding="utf-8")
    with running(api_key_file=str(file)) as served:
        assert served.get(PAGE).status == 200
        assert served.get("/?model=demo").status == 200
        for path in ("//", "/index.html", "/page.js", "/v1/models", "/page_files/page.js"):
            assert served.get(path).status == 401
        assert served.chat({"messages": [{"role": "user", "content": "Hello"}]}).status == 401
