"""The page at ``/docs``: the OpenAPI document for people, without scripts."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fastapi import FastAPI, Request

__all__ = ["REFERENCE", "add_reference"]

REFERENCE = "/docs"
"""The path of the page."""

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 60rem; padding: 1rem }
code { font-size: .9em }
td { border-top: 1px solid; padding: .2rem 1rem .2rem 0; vertical-align: top }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
}


def add_reference(app: FastAPI) -> None:
    """Add the page to an application, which has its other routes already."""

    async def show_reference(_: Request) -> Response:
        page = "".join(_page(app.openapi()))
        return Response(page, headers=_HEADERS, media_type="text/html")

    app.add_route(REFERENCE, show_reference)


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<link rel="icon" href="data:,"><title>{escape(info["title"])}</title>'
    yield f"<style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield '<p>The same for programs: <a href="openapi.json">openapi.json</a></p>'
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation['summary'])}</p>"
            body = operation.get("requestBody")
            if body:
                yield from _fields(body["content"]["application/json"]["schema"])
    yield "</body></html>"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "<details><summary>Fields</summary><table>"
    for name, field in schema["properties"].items():
        needed = " (required)" if name in schema.get("required", ()) else ""
        about = escape(field.get("description", ""))
        yield f"<tr><td><code>{escape(name)}</code>{needed}</td><td>{about}</td></tr>"
    yield "</table></details>"
