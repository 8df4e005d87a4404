"""Azure ML's scoring script: a request of OpenAI's API in, its response or its stream out.

A body with ``messages`` is a chat, and one with ``prompt`` a completion.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

TIMEOUT = 120
"""Seconds after which Azure gives a request up, by request_timeout_ms in deployment.yml."""

model: Any = None


def init() -> None:
    """Load the model, once for each process of the server."""
    global model
    found = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("MLmodel")
    folder = min(found, key=lambda path: len(path.parts)).parent
    model = mlflow.pyfunc.load_model(str(folder), model_config={"loop": "auto"}).get_raw_model()


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    """Answer a request."""
    # Where the package is the model's own copy, it can be imported once the model is loaded.
    from mlflow_phi3_onnx import GenAIError

    try:
        fields = read(request)
        task = "llm/v1/chat" if "messages" in fields else "llm/v1/completions"
        limits = {"timeout": TIMEOUT}
        if fields.get("stream") is True:
            events = written(model.run_stream(task, fields, limits))
            return AMLResponse(events, 200, {"Content-Type": "text/event-stream"})
        return AMLResponse(model.run(task, [fields], limits)[0], 200, json_str=True)
    except GenAIError as error:
        return AMLResponse(error.to_openai(), error.status, json_str=True)


def read(request: AMLRequest) -> dict[str, Any]:
    """Read the fields of a request, or say that the body has none."""
    from mlflow_phi3_onnx import InvalidRequestError

    try:
        fields = json.loads(request.get_data())
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequestError("The body must be a JSON object with messages or prompt.")
    return fields


def written(chunks: Generator[dict[str, Any]]) -> Iterator[str]:
    """Write chunks as server-sent events. A client that leaves stops the generation."""
    from mlflow_phi3_onnx import GenAIError

    with contextlib.closing(chunks):
        try:
            for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
        except GenAIError as error:
            yield f"data: {json.dumps(error.to_openai())}\n\n"
    yield "data: [DONE]\n\n"
