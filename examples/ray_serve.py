"""Serve a model with Ray Serve: OpenAI's chat API, streams included, by several replicas.

    python examples/ray_serve.py MODEL_URI [PORT]

Needs Ray: pip install "ray[serve]".
"""

import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIError, InvalidRequestError

app = FastAPI()


def read(body: bytes) -> dict[str, Any]:
    """Read the fields of a request, or say that the body has none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequestError("The body must be a JSON object with messages.")
    return fields


async def events(first: Any, chunks: AsyncGenerator[Any]) -> AsyncIterator[str]:
    """Write chunks as server-sent events. A client that leaves stops the generation."""
    try:
        yield f"data: {json.dumps(first)}\n\n"
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except GenAIError as error:
        yield f"data: {json.dumps(error.to_openai())}\n\n"
    finally:
        await chunks.aclose()
    yield "data: [DONE]\n\n"


# Requests wait in the model, which computes them together, and not in Ray: its default is 5.
# What a replica uses is pickled here, with the class, so it stands above.
@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Chats:
    """A replica with the model."""

    def __init__(self, uri: str) -> None:
        self.model = mlflow_phi3_onnx.load_model(uri, model_config={"loop": "auto"})

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """Answer a conversation, as a whole or in chunks."""
        try:
            fields = read(await request.body())
            if fields.get("stream") is not True:
                [answer] = await self.model.arun("llm/v1/chat", [fields])
                return JSONResponse(answer)
            chunks = self.model.arun_stream("llm/v1/chat", fields)
            first = await anext(chunks)  # a request that is refused gets its status
        except GenAIError as error:
            return JSONResponse(error.to_openai(), error.status)
        return StreamingResponse(events(first, chunks), media_type="text/event-stream")


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Chats.bind(sys.argv[1]), blocking=True)
