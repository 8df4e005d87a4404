"""How the server is: alive, ready, its version, its metrics."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.server.door import json_response
from mlflow_phi3_onnx.server.errors import DrainingError, ModelUnavailableError
from mlflow_phi3_onnx.server.openapi import described

if TYPE_CHECKING:
    from mlflow_phi3_onnx.server.door import Door

__all__ = ["probe_router"]


def probe_router(door: Door) -> APIRouter:
    """Make the routes."""
    router = APIRouter()

    async def alive() -> Response:
        return json_response({"status": "ok"})

    async def ready() -> Response:
        if door.draining:
            raise DrainingError("The server is shutting down.")
        if dead := {one.name: left for one in door.models.served if (left := one.health.dead)}:
            raise ModelUnavailableError(
                f"The engine of {', '.join(dead)} has died and is not started again for a while;"
                " the server's log says how it ended.",
                retry_after=max(dead.values()),
            )
        return json_response({"status": "ready"})

    async def tell_version() -> Response:
        return json_response({"version": __version__, "mlflow": version("mlflow")})

    async def metrics(request: Request) -> Response:
        text, media_type = door.metrics.written(request.headers.get("accept", ""))
        return Response(text, media_type=media_type)

    for path in ("/ping", "/health"):
        described(router, "GET", path, alive, "Tell that the server is alive.")
    described(router, "GET", "/ready", ready, "Tell whether the server takes requests.")
    described(router, "GET", "/version", tell_version, "Tell the server's version.")
    described(router, "GET", "/metrics", metrics, "Write the metrics, for Prometheus.")
    return router
