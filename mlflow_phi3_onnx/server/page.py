"""The page at ``/``: a chat in the browser, in one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

__all__ = ["PAGE", "page_router"]

PAGE = "/"
"""The path of the page. It needs no key; what it calls does."""

_FILES = Path(__file__).parent / "page_files"


def page_router() -> APIRouter:
    """Make the route."""
    router = APIRouter()
    page, headers = _page()

    async def show_page() -> Response:
        return Response(page, headers=headers, media_type="text/html")

    router.add_api_route(PAGE, show_page, methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _page() -> tuple[str, dict[str, str]]:
    """Put the page together, with headers that let it run its own script and call its own server.

    A browser runs nothing else in it, whatever a model writes: scripts and styles are known by
    their hashes, and a text cannot be made into HTML (trusted types).
    """
    page = (_FILES / "page.html").read_text(encoding="utf-8")
    allowed: dict[str, str] = {}
    for kind, file in (("style", "page.css"), ("script", "page.js")):
        text = (_FILES / file).read_text(encoding="utf-8")
        page = page.replace(f"/*{kind.upper()}*/", text, 1)
        allowed[kind] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src"
        f" 'sha256-{allowed['style']}'; img-src data:; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
        " trusted-types 'none'"
    )
    return page, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
