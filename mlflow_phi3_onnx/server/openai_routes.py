"""OpenAI's routes, and vLLM's for token ids."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotations

from mlflow_phi3_onnx.core.checks import boolean, one_of, string
from mlflow_phi3_onnx.core.options import Option, read, table
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, Task
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.server.door import Door, json_response
from mlflow_phi3_onnx.server.limits import check_limits
from mlflow_phi3_onnx.server.openapi import (
    CHUNKS,
    completion_body,
    described,
    option_body,
    response_body,
)
from mlflow_phi3_onnx.server.record import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from mlflow_phi3_onnx.model.native import GenAIModel
    from mlflow_phi3_onnx.server.served import Served

__all__ = ["openai_router"]

TOKENIZE = table(
    Option("model", "The model, by its id."),
    Option("prompt", "A whole prompt, in which control tokens are control tokens.", string),
    Option("messages", "A conversation, in place of a prompt."),
    Option("tools", "Functions that the model may call, with messages."),
    Option(
        "add_generation_prompt",
        "Whether the conversation ends with the opening of the assistant's turn.",
        boolean,
        True,
    ),
    Option(
        "add_special_tokens",
        "Nothing is ever added to a prompt, so this may only be false.",
        one_of(False),
        False,
    ),
    Option("return_token_strs", "Whether to return each token's text too.", boolean, False),
)
DETOKENIZE = table(
    Option("model", "The model, by its id."),
    Option("tokens", "Token ids."),
)


def openai_router(door: Door) -> APIRouter:
    """Make the routes."""
    router = APIRouter()

    def complete(path: str, task: Task, about: str) -> None:
        async def answer(request: Request) -> Response:
            return await door.complete(request, task, await door.fields(request))

        answer.__name__ = path.rpartition("/v1/")[2].replace("/", "_")
        described(router, "POST", path, answer, about, completion_body(task), CHUNKS)

    complete("/v1/chat/completions", CHAT, "Answer a conversation.")
    complete("/v1/completions", COMPLETIONS, "Continue one prompt or several.")

    async def respond(request: Request) -> Response:
        return await door.respond(request, await door.fields(request))

    described(
        router, "POST", "/v1/responses", respond, "Answer a conversation, or go on with one.",
        response_body(), CHUNKS,
    )  # fmt: skip

    async def list_models() -> Response:
        listed = [_card(door, name) for name in door.models.ids()]
        return json_response({"object": "list", "data": listed})

    async def get_model(model: str) -> Response:
        door.models.named(model)
        return json_response(_card(door, model))

    async def tokenize(request: Request) -> Response:
        return await _with_tokens(door, request, TOKENIZE, _tokenize)

    async def detokenize(request: Request) -> Response:
        return await _with_tokens(door, request, DETOKENIZE, _detokenize)

    described(router, "GET", "/v1/models", list_models, "List the models and their adapters.")
    described(router, "GET", "/v1/models/{model:path}", get_model, "Describe one of them.")
    described(
        router, "POST", "/tokenize", tokenize, "Turn a prompt into token ids.",
        option_body(TOKENIZE),
    )  # fmt: skip
    described(
        router, "POST", "/detokenize", detokenize, "Turn token ids into text.",
        option_body(DETOKENIZE, "tokens"),
    )  # fmt: skip
    return router


def _card(door: Door, name: str) -> dict[str, Any]:
    served, adapter = door.models.named(name)
    parent = {} if adapter is None else {"parent": served.name}
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "mlflow-phi3-onnx",
        "root": served.name,
        **parent,
        "task": served.task,
        "max_model_len": served.context_length,
        "loaded": served.loaded,
    }


async def _with_tokens(
    door: Door,
    request: Request,
    options: Mapping[str, Option],
    work: Callable[[Served, GenAIModel, dict[str, Any]], dict[str, Any]],
) -> Response:
    record = record_of(request)
    record.known = frozenset(options)
    given = await door.fields(request)
    check_limits(given, door.settings)
    fields = read(options, given, "a field of this route")
    chosen = door.models.choose(fields)
    record.model = chosen.id

    async def run(model: GenAIModel) -> dict[str, Any]:
        return await asyncio.to_thread(partial(work, chosen.served, model, chosen.fields))

    done = await door.lifetime(request).run(door.use(chosen, record, run))
    return json_response(done)


def _tokenize(served: Served, model: GenAIModel, fields: dict[str, Any]) -> dict[str, Any]:
    if ("prompt" in fields) == ("messages" in fields):
        raise InvalidRequestError(
            "The request must have either prompt, a string, or messages.", param="prompt"
        )
    if "prompt" in fields:
        for name in ("tools", "add_generation_prompt"):
            if name in fields:
                raise InvalidRequestError(f"{name} needs messages.", param=name)
        with _called("text", "prompt"):
            ids = model.tokenize(fields["prompt"])
    else:
        ids = model.apply_chat_template(
            fields["messages"],
            tools=fields.get("tools"),
            add_generation_prompt=fields.get("add_generation_prompt", True),
            tokenize=True,
        )
    found: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": served.context_length,
        "tokens": ids,
    }
    if fields.get("return_token_strs"):
        found["token_strs"] = [model.detokenize([token]) for token in ids]
    return found


def _detokenize(_: Served, model: GenAIModel, fields: dict[str, Any]) -> dict[str, Any]:
    if "tokens" not in fields:
        raise InvalidRequestError("tokens is missing: it must be token ids.", param="tokens")
    with _called("ids", "tokens"):
        return {"prompt": model.detokenize(fields["tokens"])}


@contextmanager
def _called(argument: str, field: str) -> Generator[None]:
    """Let errors name the request's field, where they name the method's argument."""
    try:
        yield
    except InvalidRequestError as error:
        message = error.message.replace(argument, field, 1)
        param = error.param and error.param.replace(argument, field, 1)
        raise type(error)(message, param=param) from error
