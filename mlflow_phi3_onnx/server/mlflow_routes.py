"""MLflow's routes: its scoring server's, and those of its deployment clients."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotations

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.options import check_mapping
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.flavor.output import Answering
from mlflow_phi3_onnx.flavor.rows import clean_params, rows
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from mlflow_phi3_onnx.server.door import Door, json_response
from mlflow_phi3_onnx.server.limits import check_limits
from mlflow_phi3_onnx.server.openapi import CHUNKS, INVOCATION, described
from mlflow_phi3_onnx.server.record import record_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = ["mlflow_router"]

FRAMES = ("dataframe_split", "dataframe_records", "instances", "inputs")
REQUESTS = ("messages", "prompt", "input")
"""The fields that make a body one request, as MLflow's server has it."""


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
    fields = await door.fields(request)
    one = any(name in fields for name in REQUESTS)
    chosen = door.models.choose(fields if one else {})
    door.watch(request, chosen)

    async def run(model: GenAIModel) -> list[Any]:
        task = chosen.served.task or CHAT
        record.known = frozenset({INPUT_FIELDS[task], *PARAMETERS[task], *FRAMES})
        if one:
            given = dict(chosen.fields)
            how = Answering.chosen(chosen.served.pyfunc, given)
            requests, params = rows(given, task), {}
        else:
            parse = partial(_rows, fields, task)
            requests, params = await asyncio.to_thread(parse)
            how = Answering.chosen(chosen.served.pyfunc, params)
        for one_request in (*requests, params):
            check_limits(one_request, door.settings)
            if one_request.get("stream") is True:
                raise UnsupportedParameterError(
                    "stream is true, but /invocations answers as a whole, as MLflow's server does."
                    " Use /v1/chat/completions or /v1/completions.",
                    param="stream",
                )
        return how.written(await model.arun(task, requests, params, on_error=how.on_error), task)

    answers = await door.lifetime(request).run(door.use(chosen, record, run))
    record.answered_rows(answers)
    return json_response(answers if one else {"predictions": answers})


def _rows(fields: Mapping[str, Any], task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the rows and params of one of MLflow's payloads."""
    given = [name for name in FRAMES if name in fields]
    field = INPUT_FIELDS[task]
    others = fields.keys() - {*FRAMES, "params"}
    if len(given) != 1 or others:
        raise InvalidRequestError(
            f"The body must have {field}, for one request, or exactly one of {', '.join(FRAMES)},"
            f" and maybe params; it has {len(given)} of these and {len(others)} other fields."
        )
    (name,) = given
    params = clean_params(check_mapping(fields.get("params"), "params"))
    data = fields[name]
    if name.startswith("dataframe"):
        data = _frame(name, data)
    elif name == "inputs" and task != CHAT and isinstance(data, dict):
        # Columns, which MLflow makes arrays of.
        lists = {k: np.array(v, dtype=object) for k, v in data.items() if isinstance(v, list)}
        data = {**data, **lists}
    return rows(data, task), params


def _frame(name: str, data: Any) -> pd.DataFrame:
    try:
        if name == "dataframe_records":
            if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
                raise ValueError
            return pd.DataFrame(data, dtype=object)
        if not isinstance(data, dict) or data.keys() - {"index", "columns", "data"}:
            raise ValueError
        return pd.DataFrame(data["data"], columns=data.get("columns"), dtype=object)
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        form = (
            "a list of objects, one a row"
            if name == "dataframe_records"
            else "an object with columns, a list of names, and data, a list of rows of that length"
        )
        raise InvalidRequestError(
            f"{name} must be {form}; got {describe_kind(data)}.", param=name
        ) from error
