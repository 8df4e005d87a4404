"""The ASGI application: the routes, what they share, and the gate before them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError
from mlflow_phi3_onnx.server.errors import BadMethodError, NoRouteError, as_server_error
from mlflow_phi3_onnx.server.gate import Gate, error_response
from mlflow_phi3_onnx.server.mlflow_routes import mlflow_router
from mlflow_phi3_onnx.server.openai_routes import openai_router
from mlflow_phi3_onnx.server.page import page_router
from mlflow_phi3_onnx.server.probes import probe_router
from mlflow_phi3_onnx.server.record import record_of
from mlflow_phi3_onnx.server.reference import add_reference
from mlflow_phi3_onnx.server.work import stopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from fastapi import Request
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from mlflow_phi3_onnx.server.auth import Keys
    from mlflow_phi3_onnx.server.door import Door

__all__ = ["make_app"]


def make_app(door: Door, keys: Keys, hosts: Collection[str] = ()) -> ASGIApp:
    """Make the application.

    Args:
        door: What the routes share.
        keys: Who may ask.
        hosts: The names that the server may be asked for; none means any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        watch = asyncio.ensure_future(door.models.watch())
        yield
        await stopped(watch)
        await asyncio.to_thread(door.models.close)

    app = FastAPI(
        title="mlflow-phi3-onnx",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    routers = (openai_router(door), mlflow_router(door), probe_router(door), page_router())
    for router in routers:
        app.include_router(router)
    add_reference(app)
    for kind in (HTTPException, GenAIError, Exception):
        app.add_exception_handler(kind, _refuse)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    gate: ASGIApp = Gate(app, door, keys, hosts, routes)
    if origins := door.settings.cors_origins:
        gate = _CORS(
            gate,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return gate


class _CORS(CORSMiddleware):
    """Says what other web sites' pages may do, and refuses in OpenAI's form."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a browser that asks before it sends a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        refusal = error_response(
            InvalidRequestError(
                "The page may not send this request: its site, the method or a header is not among"
                " those that the server takes from browsers (cors_origins)."
            )
        )
        kept = {name: value for name, value in answer.headers.items() if "content-" not in name}
        refusal.headers.update(kept)
        return refusal


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer with an error, whoever found it."""
    failure = _found(error) if isinstance(error, HTTPException) else as_server_error(error)
    record_of(request).failed(failure)
    return error_response(failure)


def _found(error: HTTPException) -> GenAIError:
    """Turn what the router found into one of the server's errors."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return BadMethodError(f"This path does not take this method; it takes {allowed}.", allowed)
    if error.status_code == 404:
        return NoRouteError("There is nothing at this path. /docs lists the paths.")
    return GenAIError(f"The server failed ({error.status_code}).")
