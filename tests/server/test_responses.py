"""OpenAI's Responses API over HTTP, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from mlflow_phi3_onnx.openai.responses_api.fields import FIELDS
from tests.support.http_server import Capital, Reply, Running, running, until
from tests.support.responses import valid_events, valid_response

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/v1/responses"
QUESTION = "What is the capital of Spain?"
MADRID = "The capital of Spain is Madrid."
LONG: Any = {"min_tokens": 4000}
CAPITAL: Any = {
    "type": "function",
    "name": "capital_of",
    "parameters": {
        "type": "object",
        "properties": {"country": {"type": "string", "enum": ["Spain"]}},
        "required": ["country"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server with low limits."""
    limits: dict[str, Any] = {
        "max_messages": 3,
        "max_tools": 1,
        "max_tokens": 5,
        "max_schema_depth": 3,
    }
    with running(**limits, max_stored_responses=1) as served:
        yield served


def events(reply: Reply) -> list[dict[str, Any]]:
    """The events of a stream, each named as it says itself."""
    found: list[dict[str, Any]] = []
    for block in reply.events:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_response(client: OpenAI, server: Running) -> None:
    answer = client.responses.create(model="demo", input=QUESTION, max_output_tokens=20)
    assert (answer.output_text, answer.status, answer.model) == (MADRID, "completed", "demo")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 8)
    reply = server.post(PATH, {"input": QUESTION, "max_output_tokens": 3})
    assert valid_response(reply.json)["status"] == "incomplete"
    assert reply.headers["x-request-id"].startswith("req-")


def test_a_stream(client: OpenAI, server: Running) -> None:
    reply = server.post(PATH, {"input": QUESTION, "stream": True})
    assert (reply.status, reply.headers["x-accel-buffering"]) == (200, "no")
    response = valid_events(events(reply))
    assert response["output"][0]["content"][0]["text"] == MADRID
    with client.responses.stream(model="demo", input=QUESTION) as made:
        pieces = [one.delta for one in made if one.type == "response.output_text.delta"]
        assert "".join(pieces) == made.get_final_response().output_text == MADRID


def test_a_pydantic_model(client: OpenAI) -> None:
    answer = client.responses.parse(
        model="demo", input=QUESTION, text_format=Capital, max_output_tokens=300
    )
    assert isinstance(answer.output_parsed, Capital)
    with client.responses.stream(
        model="demo", input=QUESTION, text_format=Capital, max_output_tokens=300
    ) as made:
        assert made.get_final_response().output_parsed == answer.output_parsed


def test_a_call_and_its_result(client: OpenAI) -> None:
    answer: Any = client.responses.create(
        model="demo", input=QUESTION, tools=[CAPITAL], tool_choice="required",
        parallel_tool_calls=False, max_output_tokens=100,
    )  # fmt: skip
    (call,) = answer.output
    assert (call.name, call.arguments) == ("capital_of", '{"country": "Spain"}')
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Madrid"}
    after = client.responses.create(
        model="demo", input=[result], previous_response_id=answer.id, max_output_tokens=3
    )
    assert after.previous_response_id == answer.id
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input=[result])
    assert caught.value.param == "input[0].call_id"


@pytest.mark.parametrize("stream", [False, True])
def test_it_goes_on_from_a_response(client: OpenAI, server: Running, stream: bool) -> None:
    fields = {"input": QUESTION, "stream": stream}
    reply = server.post(PATH, fields)
    first = events(reply)[-1]["response"] if stream else reply.json
    said = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": MADRID},
        {"role": "user", "content": "And of Peru?"},
    ]
    create: Any = client.responses.create
    after: Any = create(
        model="demo", max_output_tokens=4, input="And of Peru?", previous_response_id=first["id"]
    )
    alone: Any = create(model="demo", max_output_tokens=4, input=said)
    assert after.usage.input_tokens == alone.usage.input_tokens > 20
    assert after.output_text == alone.output_text


def test_a_response_that_is_not_kept(client: OpenAI) -> None:
    forgotten = client.responses.create(
        model="demo", input=QUESTION, store=False, max_output_tokens=1
    )
    for name in ("resp_unknown", forgotten.id):
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError, match="still kept") as caught:
                client.responses.create(
                    model="demo", input="And?", previous_response_id=name, stream=stream
                )
            assert caught.value.code == "previous_response_not_found"
            assert caught.value.param == "previous_response_id"


def test_no_more_responses_are_kept_than_the_server_says(small: Running) -> None:
    first, second = (small.post(PATH, {"input": "a"}).json["id"] for _ in range(2))
    again = {"input": "b", "max_output_tokens": 1, "store": False}
    assert small.post(PATH, {**again, "previous_response_id": first}).status == 404
    assert small.post(PATH, {**again, "previous_response_id": second}).status == 200


@pytest.mark.parametrize("limit", [{"max_stored_bytes": 50}, {"max_stored_responses": 0}])
def test_what_is_not_kept_says_so(limit: dict[str, Any]) -> None:
    with running(**limit) as served:
        ask = {"input": QUESTION, "max_output_tokens": 1}
        whole = served.post(PATH, ask).json
        last = events(served.post(PATH, {**ask, "stream": True}))[-1]["response"]
        for told in (whole, last):
            assert told["store"] is False
            again = served.post(PATH, {**ask, "previous_response_id": told["id"]})
            assert again.status == 404
    with running() as served:
        assert served.post(PATH, ask).json["store"] is True
        assert events(served.post(PATH, {**ask, "stream": True}))[-1]["response"]["store"] is True


def test_async(server: Running) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            create = client.responses.create
            whole, made = await asyncio.gather(
                create(model="demo", input=QUESTION),
                create(model="demo", input=QUESTION, stream=True),
            )
            deltas = [e.delta async for e in made if e.type == "response.output_text.delta"]
            return [whole.output_text, "".join(deltas)]

    assert asyncio.run(ask()) == [MADRID, MADRID]


def test_a_stream_that_is_left_stops_and_is_not_kept() -> None:
    async def leave(url: str) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            made = await client.responses.create(
                model="demo", input=QUESTION, stream=True, extra_body=LONG
            )
            async for event in made:
                if event.type == "response.output_text.delta":
                    break
            await made.close()

    with running() as served:
        asyncio.run(leave(served.url))
        until(lambda: served.metric("requests_cancelled_total") == 1)
        assert served.metric("batch_size") == 0
        with served.send({"input": QUESTION, **LONG}, PATH):
            until(lambda: served.metric("batch_size") == 1)
        until(lambda: served.metric("requests_cancelled_total") == 2)
        assert served.metric("batch_size") == 0
        assert len(served.server.door.history) == 0


def test_an_error_within_a_stream() -> None:
    with running(timeout=0.5) as served, OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        reply = served.post(PATH, {"input": QUESTION, "stream": True, **LONG})
        *before, error = events(reply)
        assert before[0]["type"] == "response.created"
        assert error["sequence_number"] == len(before)
        assert (error["type"], error["code"], error["param"]) == ("error", "timeout", None)
        made = client.responses.create(model="demo", input=QUESTION, stream=True, extra_body=LONG)
        with pytest.raises(openai.APIError, match="not finished within"):
            list(made)
        reply = served.post(PATH, {"input": QUESTION, **LONG})
        assert (reply.status, reply.error["code"]) == (504, "timeout")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"temperature": 9}, 400, "temperature"),
        ({"max_output_tokens": 5000}, 400, "max_output_tokens"),
        ({"max_tokens": 5}, 400, "max_tokens"),
        ({"input": []}, 400, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, None),
        ({"text": {"format": {"type": "xml"}}}, 400, "text.format"),
        ({"background": True}, 400, "background"),
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": 7}, 400, "model"),
    ],
)
def test_errors(server: Running, fields: Any, status: int, param: Any, stream: bool) -> None:
    reply = server.post(PATH, {"input": QUESTION, "stream": stream, **fields})
    assert reply.status == status
    assert param in (None, reply.error["param"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_output_tokens": 6}, "max_output_tokens may be at most 5 on this server"),
        ({"tools": [CAPITAL, {**CAPITAL, "name": "b"}]}, "tools has 2 tools"),
        ({"input": [{"role": "user", "content": "a"}] * 4}, "input has 4 messages"),
        (
            {"tools": [{**CAPITAL, "parameters": {"a": {"b": {"c": {"d": {}}}}}}]},
            "tools[0]: the schema is nested 4 levels deep",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n",
                                 "schema": {"a": {"b": {"c": {"d": {}}}}}}}},
            "text.format: the schema is nested 4 levels deep",
        ),
    ],
)  # fmt: skip
def test_the_server_s_limits(small: Running, fields: Any, says: str) -> None:
    reply = small.post(PATH, {"input": QUESTION, **fields})
    assert reply.status == 400
    assert reply.error["message"].startswith(says)
    assert reply.error["param"] == says.partition(" ")[0].rstrip(":")


def test_a_response_has_no_more_tokens_than_the_server_gives(small: Running) -> None:
    told = small.post(PATH, {"input": QUESTION, "store": False}).json
    assert (told["status"], told["usage"]["output_tokens"]) == ("incomplete", 5)


def test_the_document_describes_it(server: Running) -> None:
    document = server.get("/openapi.json").json
    body = document["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    told = set(body["properties"]) - {"input", "text", "reasoning"}
    told |= {f"text.{name}" for name in body["properties"]["text"]["anyOf"][0]["properties"]}
    told |= {f"reasoning.{n}" for n in body["properties"]["reasoning"]["anyOf"][0]["properties"]}
    assert told == {row.name for row in FIELDS.values() if row.status != "refused"}
    assert body["required"] == ["input"]


def test_several_events_of_one_token_are_no_slow_client() -> None:
    with running(stream_buffer=1) as served:
        reply = served.post(PATH, {"input": QUESTION, "stream": True})
        assert valid_events(events(reply))["output"][0]["content"][0]["text"] == MADRID
