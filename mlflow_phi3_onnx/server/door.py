"""From a request's body to the response: which model, which limits, whole or as a stream."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.model.observers import HERE, Observer
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from mlflow_phi3_onnx.openai.responses_api.events import respond, stream
from mlflow_phi3_onnx.openai.responses_api.fields import FIELDS
from mlflow_phi3_onnx.openai.responses_api.history import History
from mlflow_phi3_onnx.openai.responses_api.request import read_request
from mlflow_phi3_onnx.server.body import read_fields, to_json
from mlflow_phi3_onnx.server.limits import check_limits, check_stream_options
from mlflow_phi3_onnx.server.metrics import Metrics
from mlflow_phi3_onnx.server.record import record_of
from mlflow_phi3_onnx.server.sse import ChatEvents, EventStream, ResponseEvents
from mlflow_phi3_onnx.server.work import Lifetime
from mlflow_phi3_onnx.tracing.spans import Caller, Tracer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from fastapi import Request

    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.model.native import GenAIModel
    from mlflow_phi3_onnx.server.models import Chosen, Registry
    from mlflow_phi3_onnx.server.record import Record
    from mlflow_phi3_onnx.server.settings import ServerSettings

__all__ = ["Door", "json_response"]


class Door:
    """What every route needs of the server.

    Args:
        models: The models that are served.
        settings: The server's settings.

    Attributes:
        models: The models that are served.
        settings: The server's settings.
        metrics: Its metrics.
        history: The conversations that responses go on from.
        draining: Whether it is about to end, and takes no more requests.
        working: How many requests it is at.
    """

    def __init__(self, models: Registry, settings: ServerSettings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = Metrics(models)
        self.history = History(settings.max_stored_responses, settings.max_stored_bytes)
        self.draining = False
        self.working = 0
        self._ending: asyncio.Future[None] | None = None

    @property
    def ending(self) -> asyncio.Future[None]:
        """Is done when the server gives up whatever is running."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_future()
        return self._ending

    def lifetime(self, request: Request) -> Lifetime:
        """Return how long a request may go on, whose body has been read."""
        return Lifetime(request.receive, self.settings.timeout, self.ending)

    async def fields(self, request: Request) -> dict[str, Any]:
        """Read a request's fields."""
        return await read_fields(request, self.settings)

    async def complete(
        self, request: Request, task: Task, fields: Mapping[str, Any], name: str | None = None
    ) -> Response:
        """Answer as OpenAI does.

        Args:
            request: The request.
            task: What is asked for.
            fields: Its fields.
            name: The model, where the path says it.
        """
        record = record_of(request)
        record.known = frozenset({INPUT_FIELDS[task], "model", *PARAMETERS[task]})
        check_limits(fields, self.settings)
        check_stream_options(fields)
        chosen = self.models.choose(fields, name)
        self.watch(request, chosen)
        lifetime = self.lifetime(request)
        if fields.get("stream") is True:
            record.stream = True
            chunks = self._stream(chosen, task, record)
            return EventStream(chunks, lifetime, self.settings, record, ChatEvents())
        return json_response(await lifetime.run(self._whole(chosen, task, record)))

    async def respond(self, request: Request, fields: Mapping[str, Any]) -> Response:
        """Answer as OpenAI's Responses API does.

        Args:
            request: The request.
            fields: Its fields.
        """
        record = record_of(request)
        record.known = frozenset({"input", *FIELDS})
        check_limits(fields, self.settings)
        asked = await asyncio.to_thread(read_request, fields, self.history)
        with asked.named():
            check_limits(asked.chat, self.settings)
            chosen = self.models.choose(asked.chat)
        self.watch(request, chosen)
        lifetime = self.lifetime(request)
        if asked.stream:
            record.stream = True
            events = stream(asked, self._stream(chosen, CHAT, record), self.history)
            return EventStream(events, lifetime, self.settings, record, ResponseEvents())
        completion = self._whole(chosen, CHAT, record)
        return json_response(await lifetime.run(respond(asked, completion, self.history)))

    def watch(self, request: Request, chosen: Chosen) -> None:
        """Note which model a request has chosen, and let what it comes to there be watched."""
        record = record_of(request)
        record.model = chosen.id
        watching: tuple[Observer, ...] = (record,)
        if self.settings.trace:
            caller = Caller(record.id, request.headers.get("traceparent"), chosen.id)
            watching += (Tracer(content=self.settings.trace_content, caller=caller),)
        HERE.set(watching)  # a request is answered in a context of its own

    async def use(self, chosen: Chosen, record: Record, work: Callable[[GenAIModel], Any]) -> Any:
        """Do work with a model, once there is a place for it."""
        async with chosen.served.use(record) as model:
            return await work(model)

    async def _whole(self, chosen: Chosen, task: Task, record: Record) -> dict[str, Any]:
        async def answer(model: GenAIModel) -> Any:
            (response,) = await model.arun(task, [chosen.fields])
            return response

        response = await self.use(chosen, record, answer)
        record.answered(response)
        return {**response, "model": chosen.id}

    async def _stream(
        self, chosen: Chosen, task: Task, record: Record
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield chunks; the usage is always asked for, and passed on where it is wanted."""
        asked = chosen.fields.get("stream_options")
        options = {} if asked is None else asked
        wanted = isinstance(options, dict) and options.get("include_usage") is True
        if isinstance(options, dict) and options.get("include_usage") in (None, False, True):
            options = {**options, "include_usage": True}
        fields = {**chosen.fields, "stream_options": options}
        with record.noting():
            async with (
                chosen.served.use(record) as model,
                aclosing(model.arun_stream(task, fields)) as chunks,
            ):
                async for chunk in chunks:
                    record.saw(chunk)
                    chunk["model"] = chosen.id
                    if not wanted:
                        del chunk["usage"]
                    if chunk["choices"] or wanted:
                        yield chunk


def json_response(value: Any, status: int = 200) -> Response:
    """Write a response."""
    return Response(to_json(value), status, media_type="application/json")
