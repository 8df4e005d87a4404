"""OpenAI's own Python client, as its users call it."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from mlflow_phi3_onnx import demo_model_path
from tests.support.doors import SPAIN
from tests.support.http_server import Capital, Running, running, until

MADRID = "The capital of Spain is Madrid."
CAPITAL: Any = {
    "type": "function",
    "function": {
        "name": "capital_of",
        "parameters": {
            "type": "object",
            "properties": {"country": {"type": "string", "enum": ["Spain", "Peru"]}},
            "required": ["country"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture(scope="module")
def messages() -> Any:
    return SPAIN


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("demo", "model")
    assert model.model_dump()["max_model_len"] == 4096
    assert client.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError, match="There are: demo") as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_chat(client: OpenAI, messages: Any) -> None:
    answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=20)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", MADRID)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 8)
    assert answer.model == "demo"


def test_chat_in_a_stream(client: OpenAI, messages: Any) -> None:
    stream = client.chat.completions.create(model="demo", messages=messages, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == MADRID
    with client.chat.completions.stream(
        model="demo", messages=messages, stream_options={"include_usage": True}
    ) as events:
        assert events.get_final_completion().usage is not None
        assert events.get_final_completion().choices[0].message.content == MADRID


def test_the_raw_response_carries_the_request_id(client: OpenAI, messages: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=messages, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"


def test_every_kind_of_field_that_clients_send(client: OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of Spain?"}]},
    ]
    answer = client.chat.completions.create(
        model="demo", messages=parts, max_completion_tokens=4, n=2, logprobs=True, top_logprobs=2,
        seed=3, temperature=0.5, stop=["\n"], user="someone", metadata={"a": "b"},
        presence_penalty=0.0, frequency_penalty=0.0, extra_body={"top_k": 5, "min_p": 0.1},
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt=["The capital of Spain is", "One two"], max_tokens=2, echo=True
    )
    assert answer.choices[0].text.startswith("The capital of Spain is")
    assert len(answer.choices) == 2
    stream = client.completions.create(
        model="demo", prompt="The capital of Spain is", max_tokens=2, stream=True
    )
    whole = client.completions.create(model="demo", prompt="The capital of Spain is", max_tokens=2)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_a_pydantic_model(client: OpenAI, messages: Any) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=messages, response_format=Capital, max_tokens=300
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Capital)
    with client.chat.completions.stream(
        model="demo", messages=messages, response_format=Capital, max_tokens=300
    ) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.parsed == parsed


def test_tools(client: OpenAI, messages: Any) -> None:
    """The demo model writes no calls by itself, so that they are required."""
    named: Any = {"type": "function", "function": {"name": "capital_of"}}
    for choice in ("required", named):
        answer: Any = client.chat.completions.create(
            model="demo", messages=messages, tools=[CAPITAL], tool_choice=choice, max_tokens=100
        )
        (call, *_) = answer.choices[0].message.tool_calls
        assert call.function.name == "capital_of"
        assert call.function.arguments in ('{"country": "Spain"}', '{"country": "Peru"}')
        assert answer.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(
        model="demo", messages=messages, tools=[CAPITAL], tool_choice="required",
        parallel_tool_calls=False, max_tokens=100,
    ) as events:  # fmt: skip
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls or []
    assert streamed.function.name == "capital_of"
    assert isinstance(streamed.function.parsed_arguments, dict)


def test_async(server: Running, messages: Any) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            create = client.chat.completions.create
            whole, stream = await asyncio.gather(
                create(model="demo", messages=messages),
                create(model="demo", messages=messages, stream=True),
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [whole.choices[0].message.content or "", "".join(pieces)]

    assert asyncio.run(ask()) == [MADRID, MADRID]


def test_an_async_stream_that_is_left_stops(messages: Any) -> None:
    async def leave(url: str) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            stream = await client.chat.completions.create(
                model="demo", messages=messages, stream=True, extra_body={"min_tokens": 4000}
            )
            async for _ in stream:
                break
            await stream.close()

    with running() as served:
        asyncio.run(leave(served.url))
        until(lambda: served.metric("requests_cancelled_total") == 1)
        assert served.metric("batch_size") == 0


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"temperature": 9}, openai.BadRequestError, "temperature", None),
        ({"best_of": 2}, openai.BadRequestError, "best_of", "unsupported_parameter"),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
    ],
)
def test_errors(
    client: OpenAI, messages: Any, fields: Any, kind: Any, param: str, code: Any
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(
            model=fields.get("model", "demo"), messages=messages, extra_body=fields
        )
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.request_id.startswith("req-")


def test_an_error_within_a_stream(messages: Any) -> None:
    with running(timeout=0.3) as served, OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        stream = client.chat.completions.create(
            model="demo", messages=messages, stream=True, extra_body={"min_tokens": 4000}
        )
        with pytest.raises(openai.APIError, match="not finished within"):
            list(stream)


def test_a_key(tmp_path: Any, messages: Any) -> None:
    (tmp_path / "keys").write_text("sk-abcdefgh", encoding="utf-8")
    with running(api_key_file=str(tmp_path / "keys")) as served:
        for key, good in (("sk-abcdefgh", True), ("sk-abcdefgi", False)):
            with OpenAI(base_url=f"{served.url}/v1", api_key=key) as client:
                create = client.chat.completions.create
                if good:
                    assert create(model="demo", messages=messages).choices
                else:
                    with pytest.raises(openai.AuthenticationError):
                        create(model="demo", messages=messages)


def test_it_tries_again_after_429(messages: Any) -> None:
    with running({"demo": demo_model_path()}, max_running=1, max_queue=0) as served:
        busy = served.send({"messages": messages, "min_tokens": 4000})
        until(lambda: served.metric("num_requests_running") == 1)
        with OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as hasty:
            with pytest.raises(openai.RateLimitError) as caught:
                hasty.chat.completions.create(model="demo", messages=messages)
            assert caught.value.code == "queue_full"
            assert caught.value.response.headers["retry-after"] == "1"
        with OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=5) as patient:
            create: Any = patient.chat.completions.with_raw_response.create

            async def ask() -> Any:
                asked = asyncio.create_task(
                    asyncio.to_thread(create, model="demo", messages=messages)
                )
                refused = {"status": "429"}
                await asyncio.to_thread(
                    until, lambda: served.metric("http_requests_total", **refused) >= 2
                )
                busy.close()
                return await asked

            raw = asyncio.run(ask())
        assert raw.retries_taken >= 1
        assert raw.parse().choices[0].message.content == MADRID
