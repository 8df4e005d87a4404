"""MLflow's routes: its scoring server's, and those of its deployment clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotations

from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS
from mlflow_phi3_onnx.errors import UnsupportedParameterError
from mlflow_phi3_onnx.flavor.output import Answering
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from mlflow_phi3_onnx.server.body import CSV, media_type, read_body
from mlflow_phi3_onnx.server.door import Door, json_response
from mlflow_phi3_onnx.server.limits import check_limits, check_stream_options
from mlflow_phi3_onnx.server.openapi import CHUNKS, INVOCATION, described
from mlflow_phi3_onnx.server.payload import FRAMES, parse_csv, parse_payload
from mlflow_phi3_onnx.server.record import record_of

if TYPE_CHECKING:
    from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = ["mlflow_router"]


def mlflow_router(door: Door) -> APIRouter:
    """Make the routes."""
    router = APIRouter()

    async def invocations(request: Request) -> Response:
        return await _invoke(door, request)

    async def endpoint(request: Request, name: str) -> Response:
        fields = await door.fields(request)
        task = COMPLETIONS if "prompt" in fields else CHAT
        return await door.complete(request, task, fields, name)

    async def list_endpoints() -> Response:
        listed = [_entry(door, name) for name in door.models.ids()]
        return json_response({"endpoints": listed})

    async def get_endpoint(name: str) -> Response:
        door.models.named(name)
        return json_response(_entry(door, name))

    described(router, "POST", "/invocations", invocations,
              "Answer as MLflow's server does: a list, one entry a row.", INVOCATION)  # fmt: skip
    described(router, "POST", "/endpoints/{name:path}/invocations", endpoint,
              "Answer a request as OpenAI does.", INVOCATION, CHUNKS)  # fmt: skip
    for path in ("/api/2.0/endpoints/", "/api/2.0/endpoints"):
        described(router, "GET", path, list_endpoints, "List the models as MLflow's endpoints.")
    described(router, "GET", "/api/2.0/endpoints/{name:path}", get_endpoint, "Describe one.")
    return router


def _entry(door: Door, name: str) -> dict[str, Any]:
    served, _ = door.models.named(name)
    task = COMPLETIONS if served.task not in (None, CHAT) else CHAT
    return {
        "name": name,
        "endpoint_type": task,
        "task": task,
        "model": {"name": name, "provider": "mlflow-phi3-onnx"},
        "endpoint_url": f"/endpoints/{name}/invocations",
        "limit": None,
    }


async def _invoke(door: Door, request: Request) -> Response:
    record = record_of(request)
    record.known = frozenset({"model", "params", *FRAMES})
    if media_type(request) == CSV:
        payload = await asyncio.to_thread(parse_csv, await read_body(request, door.settings, CSV))
    else:
        payload = await asyncio.to_thread(parse_payload, await door.fields(request))
    models, params = door.models, payload.params
    model_name = {"model": payload.model(models.served[0].name)}
    chosen = models.choose({**model_name, "adapter": params.get("adapter")})
    door.watch(request, chosen)

    async def run(model: GenAIModel) -> list[Any]:
        task = chosen.served.task or CHAT
        record.known |= {INPUT_FIELDS[task], *PARAMETERS[task]}
        how = Answering.chosen(chosen.served.pyfunc, payload.data if payload.one else params)
        requests = await asyncio.to_thread(payload.rows, task)
        beside = {name: value for name, value in params.items() if name != "model"}
        for fields in (*requests, beside):
            check_limits(fields, door.settings)
            check_stream_options(fields)
            if fields.get("stream") is True:
                raise UnsupportedParameterError(
                    "stream is true, but /invocations answers as a whole, as MLflow's server does."
                    " Use /v1/chat/completions or /v1/completions.",
                    param="stream",
                )
        adapters = [fields.get("adapter", beside.get("adapter")) for fields in requests]
        by = [models.choose({**model_name, "adapter": adapter}) for adapter in adapters]
        requests = [{**fields, **one.fields} for fields, one in zip(requests, by, strict=True)]
        answers = await model.arun(task, requests, beside, on_error=how.on_error)
        record.answered_rows(answers)
        named = [_named(answer, one.id) for answer, one in zip(answers, by, strict=True)]
        return how.written(named, task)

    answers = await door.lifetime(request).run(door.use(chosen, record, run))
    return json_response(answers if payload.one else {"predictions": answers})


def _named(answer: Any, model: str) -> Any:
    """Let a response name the model by its id here."""
    return {**answer, "model": model} if isinstance(answer, dict) and "id" in answer else answer
