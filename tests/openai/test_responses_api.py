"""OpenAI's Responses API over chat: what requests mean, what comes back, and what is kept."""

from __future__ import annotations

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.errors import (
    GenAIError,
    GenerationTimeoutError,
    MemoryBudgetError,
    ResponseNotFoundError,
)
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.openai.responses_api.events import Events, respond, sse, stream
from mlflow_phi3_onnx.openai.responses_api.fields import FIELDS, LOGPROBS, SAME_IN_CHAT
from mlflow_phi3_onnx.openai.responses_api.history import History
from mlflow_phi3_onnx.openai.responses_api.output import TextTokens
from mlflow_phi3_onnx.openai.responses_api.request import read_request
from tests.support.doors import COUNTED
from tests.support.mutations import VALUES
from tests.support.responses import ask, running, text_of, valid_events
from tests.support.thinking import THOUGHT, channels, thinker
from tests.support.tool_cases import TOOLS, closed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from openai.types.responses import ParsedResponse

DOORS = ["whole", "stream"]
SPAIN = "What is the capital of Spain?"
WEATHER = "What is the weather in Paris?"
FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]
ONE = {"type": "json_schema", "name": "n", "schema": closed(n={"enum": [1]}), "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OTHER = {**CALL, "call_id": "c2", "name": "g"}
OTHER_CALLED = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
RESULT_TOLD = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
THINKS = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
    "encrypted_content": None,
    "status": "completed",
}


def said(text: str, **more: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "phase": None,
        "content": [part],
        **more,
    }


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def chat_of(**body: Any) -> dict[str, Any]:
    return read_request({"input": "x", **body}, History()).chat


MESSAGES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "a text": ("Hi.", [user("Hi.")]),
    "a message": ([user("Hi.")], [user("Hi.")]),
    "its type": ([{"type": "message", **user("Hi.")}], [user("Hi.")]),
    "parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]}],
        [user("ab")],
    ),
    "a developer": (
        [{"role": "developer", "content": "Be brief."}, user("Hi.")],
        [{"role": "system", "content": "Be brief."}, user("Hi.")],
    ),
    "an answer": ([user("Hi."), said("Yes.")], [user("Hi."), assistant("Yes.")]),
    "a refusal": ([said("", content=[{"type": "refusal", "refusal": "No."}])], [assistant("No.")]),
    "two answers": ([said("a"), said("b")], [assistant("a"), assistant("b")]),
    "a call and its result": (
        [CALL, RESULT],
        [assistant("", tool_calls=[CALLED]), RESULT_TOLD],
    ),
    "a result of parts": (
        [CALL, {**RESULT, "name": "f", "output": [{"type": "input_text", "text": "sunny"}]}],
        [assistant("", tool_calls=[CALLED]), {**RESULT_TOLD, "name": "f"}],
    ),
    "two calls": ([CALL, OTHER], [assistant("", tool_calls=[CALLED, OTHER_CALLED])]),
    "a call after a result": (
        [CALL, RESULT, OTHER],
        [
            assistant("", tool_calls=[CALLED]),
            RESULT_TOLD,
            assistant("", tool_calls=[OTHER_CALLED]),
        ],
    ),
    "a whole turn": (
        [THINKS, said("I look."), CALL, RESULT, said("Sunny.")],
        [
            assistant("I look.", tool_calls=[CALLED], reasoning_content="Hm."),
            RESULT_TOLD,
            assistant("Sunny."),
        ],
    ),
    "text around a call": (
        [said("a"), CALL, said("b"), THINKS, RESULT],
        [assistant("ab", tool_calls=[CALLED], reasoning_content="Hm."), RESULT_TOLD],
    ),
    "thoughts of two turns": (
        [THINKS, said("a"), THINKS, said("b")],
        [assistant("a", reasoning_content="Hm."), assistant("b", reasoning_content="Hm.")],
    ),
    "a thought and its summary": (
        [{**THINKS, "summary": [{"type": "summary_text", "text": "h"}]}, said("a")],
        [assistant("a", reasoning_content="Hm.")],
    ),
    "an empty thought": ([{**THINKS, "content": None}, said("a")], [assistant("a")]),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_items_are_messages(name: str) -> None:
    given, messages = MESSAGES[name]
    assert chat_of(input=given)["messages"] == messages


def test_instructions_come_first() -> None:
    messages = chat_of(instructions="Be brief.", input=[user("Hi.")])["messages"]
    assert messages == [{"role": "system", "content": "Be brief."}, user("Hi.")]


F: dict[str, Any] = {"type": "function", "name": "f"}
CHAT_F = {"type": "function", "function": {"name": "f"}}
CHAT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "nulls": (dict.fromkeys(FIELDS), {}),
    "a tool": (
        {"tools": [{**F, "description": "d", "parameters": closed(), "strict": True}]},
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "description": "d",
                        "parameters": closed(),
                        "strict": True,
                    },
                }
            ]
        },
    ),
    "a bare tool": (
        {"tools": [{**F, "parameters": None, "strict": None, "defer_loading": False}]},
        {"tools": [CHAT_F]},
    ),
    "a tool's nulls": (
        {"tools": [{**F, "parameters": closed(a={"const": None})}]},
        {"tools": [{**CHAT_F, "function": {"name": "f", "parameters": closed(a={"const": None})}}]},
    ),
    "a word of tool_choice": ({"tool_choice": "required"}, {"tool_choice": "required"}),
    "a tool by name": ({"tool_choice": F}, {"tool_choice": CHAT_F}),
    "allowed tools": (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [F]}},
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [CHAT_F]},
            }
        },
    ),
    "one call": ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    "a text": ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
    "an object": (
        {"text": {"format": {"type": "json_object"}, "verbosity": None}},
        {"response_format": {"type": "json_object"}},
    ),
    "a schema": (
        {"text": {"format": ONE}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": ONE["schema"], "strict": True},
            }
        },
    ),
    "an effort": ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
    "a limit": ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
    "sampling": ({"temperature": 0, "top_p": 1}, {"temperature": 0.0, "top_p": 1.0}),
    "logprobs": ({"include": [LOGPROBS]}, {"logprobs": True, "top_logprobs": 0}),
    "top logprobs": (
        {"include": [LOGPROBS], "top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 3},
    ),
    "what chat has no field for": (
        {
            "metadata": {"a": "b"},
            "store": False,
            "truncation": "disabled",
            "user": "u",
            "service_tier": "auto",
            "background": False,
            "stream": True,
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "include": [],
            "stream_options": {"include_obfuscation": False},
            "top_logprobs": 0,
        },
        {},
    ),
    "chat's own": ({"top_k": 3, "seed": 1, "model": "m"}, {"top_k": 3, "seed": 1, "model": "m"}),
}


@pytest.mark.parametrize("name", CHAT)
def test_fields_are_those_of_chat(name: str) -> None:
    body, fields = CHAT[name]
    if "tool_choice" in fields:
        body, fields = {"tools": [F], **body}, {"tools": [CHAT_F], **fields}
    chat = chat_of(**body)
    assert chat == {"messages": [user("x")], "n": 1, **COUNTED, **fields}
    assert parse_request(chat, "llm/v1/chat")


def test_fields_that_are_chats_are_known_there() -> None:
    assert set(SAME_IN_CHAT) <= set(PARAMETERS["llm/v1/chat"])
    assert len(FIELDS) == len(set(FIELDS))


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [user("x"), fields]}


TEXTS = "must be a string or a list of"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no input": ({"input": None}, "input", f"input {TEXTS} items; it is missing"),
    "an empty input": ({"input": []}, "input", "got an empty list"),
    "a wrong input": ({"input": 3}, "input", f"input {TEXTS} items; got 3"),
    "no item": ({"input": ["x"]}, "input[0]", r"input\[0\] must be an object; got a string"),
    "a role": (item(role="tool", content="x"), "input[1].role", "must be one of system"),
    "no role": (item(content="x"), "input[1].role", "it is missing"),
    "no content": (item(role="assistant"), "input[1].content", "it is missing"),
    "a wrong content": (
        item(role="user", content=3),
        "input[1].content",
        r"input\[1\].content must be a string or a list of text parts; got 3",
    ),
    "a wrong answer": (
        {"input": [said("x"), CALL, {"role": "assistant", "content": True}]},
        "input[2].content",
        "text parts; got True",
    ),
    "a wrong summary": (item(**{**THINKS, "summary": "x"}), "input[1].summary", "a list of parts"),
    "an image": (
        item(role="user", content=[{"type": "input_image", "image_url": "x"}]),
        "input[1].content[0]",
        "parts of type input_image are not supported",
    ),
    "a member of a part": (
        item(role="user", content=[{"type": "input_text", "text": "x", "cached": 1}]),
        "input[1].content[0].cached",
        "is not supported",
    ),
    "a phase": (item(**said("x", phase="commentary")), "input[1].phase", "is not supported"),
    "an item": (
        item(type="web_search_call"),
        "input[1].type",
        "one of message, function_call, function_call_output, reasoning; got another",
    ),
    "a reference": (item(type="item_reference", id="x"), "input[1].type", "Send the item itself"),
    "a call's arguments": (
        item(**{**CALL, "arguments": {}}),
        "input[1].arguments",
        "must be a string; got an object",
    ),
    "a call's namespace": (item(**CALL, namespace="n"), "input[1].namespace", "is not supported"),
    "a late call": (item(**CALL, **{"async": True}), "input[1].async", "is not supported"),
    "a result of no call": (item(**RESULT), "input[1].call_id", "that of a function_call before"),
    "no result": (
        {"input": [CALL, {**RESULT, "output": None}]},
        "input[1].output",
        "it is missing",
    ),
    "a result that is an image": (
        {"input": [CALL, {**RESULT, "output": [{"type": "input_image"}]}]},
        "input[1].output[0]",
        "parts of type input_image",
    ),
    "a hidden thought": (
        item(**{**THINKS, "encrypted_content": "x"}),
        "input[1].encrypted_content",
        "is not supported",
    ),
    "a summary": (
        item(**{**THINKS, "content": [], "summary": [{"type": "summary_text", "text": "x"}]}),
        "input[1].summary",
        "no thought of this model's",
    ),
    "a wrong thought": (item(**{**THINKS, "content": "x"}), "input[1].content", "a list of parts"),
    "a part of a thought": (
        item(**{**THINKS, "content": [{"type": "summary_text", "text": "x"}]}),
        "input[1].content[0].type",
        "must be reasoning_text",
    ),
    "a built-in tool": (
        {"tools": [F, {"type": "web_search"}]},
        "tools[1].type",
        "tools of type web_search are not supported",
    ),
    "chat's tool": ({"tools": [CHAT_F]}, "tools[0].function", "is not supported"),
    "a tool's member": ({"tools": [{**F, "output_schema": {}}]}, "tools[0].output_schema", "not"),
    "a tool that is late": ({"tools": [{**F, "async": True}]}, "tools[0].async", "not supported"),
    "a tool without name": ({"tools": [{"type": "function"}]}, "tools", "tools must be a list of"),
    "too many tools": ({"tools": [F] * 129}, "tools", "at most 128 objects"),
    "a built-in choice": (
        {"tool_choice": {"type": "file_search"}},
        "tool_choice.type",
        "no tools of type file_search",
    ),
    "chat's choice": ({"tool_choice": CHAT_F}, "tool_choice", "'name': ...}; got|'name'.* got an"),
    "a choice of a mode": (
        {"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": [F]}},
        "tool_choice",
        "'mode': 'auto' or 'required'",
    ),
    "a schema without name": (
        {"text": {"format": {"type": "json_schema", "schema": {}}}},
        "text.format",
        "'json_schema' with name and schema",
    ),
    "chat's schema": (
        {"text": {"format": {"type": "json_schema", "json_schema": {}}}},
        "text.format.json_schema",
        "is not supported",
    ),
    "a text": ({"text": "x"}, "text", "text must be an object; got a string"),
    "a verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "Say it in instructions"),
    "a field of text": ({"text": {"formt": {}}}, "text.formt", r"Did you mean text\.format\?"),
    "an effort": ({"reasoning": {"effort": "max"}}, "reasoning.effort", "must be one of none"),
    "summaries": ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "is not supported"),
    "truncation": ({"truncation": "auto"}, "truncation", "must be 'disabled'"),
    "background": ({"background": True}, "background", "is not supported"),
    "a tier": ({"service_tier": "flex"}, "service_tier", "must be one of auto, default"),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens", "an integer from 1"),
    "top logprobs alone": (
        {"top_logprobs": 1},
        "top_logprobs",
        f"needs include to hold {LOGPROBS}",
    ),
    "too many logprobs": ({"include": [LOGPROBS], "top_logprobs": 21}, "top_logprobs", "0 to 20"),
    "hidden thoughts": (
        {"include": [LOGPROBS, "reasoning.encrypted_content"]},
        "include[1]",
        "holds the thought itself",
    ),
    "other output": ({"include": ["file_search_call.results"]}, "include[0]", "of tools"),
    "padding": (
        {"stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "is not supported",
    ),
    "a conversation": ({"conversation": "c"}, "conversation", "Use previous_response_id"),
    "messages": ({"messages": []}, "messages", "Use input"),
    "chat's format": ({"response_format": {}}, "response_format", r"Use text\.format"),
    "chat's limit": ({"max_tokens": 5}, "max_tokens", "Use max_output_tokens"),
    "an unknown field": ({"temperatur": 5}, "temperatur", "Did you mean temperature"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(name: str) -> None:
    body, param, message = REFUSED[name]
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read_request({"input": "x", **body}, History())
    assert caught.value.param == param
    assert str(caught.value).startswith(param)
    assert caught.value.status == 400


def test_metadata_reach_as_far_as_they_say() -> None:
    full = {f"{i:064}": "v" * 512 for i in range(16)}
    assert read_request({"input": "x", "metadata": full}, History()).echoed["metadata"] == full
    for wrong in ({**full, "x": ""}, {"k" * 65: ""}, {"k": "v" * 513}, {"k": 1}):
        with pytest.raises(InvalidRequestError, match=r"^metadata must be an object of at most 16"):
            read_request({"input": "x", "metadata": wrong}, History())


CANARY = "CANARY7f3a"


def mutated(value: Any, rng: random.Random) -> Any:
    """Put other values, or other members, into some of a body's places."""
    if rng.random() < 0.1:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        more = (
            {rng.choice(list(value) or ["type"]): rng.choice(VALUES)} if rng.random() < 0.1 else {}
        )
        return {name: mutated(inner, rng) for name, inner in (value | more).items()}
    if isinstance(value, list | tuple):
        return [mutated(inner, rng) for inner in value]
    return CANARY if value in ("x", "Hi.") else value


def test_no_body_ends_in_anything_but_a_request_or_an_error() -> None:
    bodies = [{"input": items} for items, _ in MESSAGES.values()]
    bodies += [{"input": [user("x")], **body} for body, _ in CHAT.values()]
    bodies += [{"input": [user("x")], **body} for body, _, _ in REFUSED.values()]
    history = History(max_responses=1)
    rng = random.Random(7)  # noqa: S311 - the same cases at every run
    refused: list[InvalidRequestError] = []
    for _ in range(4000):
        body = mutated(rng.choice(bodies), rng)
        try:
            request = read_request(body if isinstance(body, dict) else {}, history)
            with request.named():
                parse_request(request.chat, "llm/v1/chat")
        except InvalidRequestError as error:
            refused.append(error)
        else:
            request.keep({"id": "a", "output": []}, history)
    assert 400 < len(refused) < 3600
    assert all(error.param and CANARY not in str(error) for error in refused)


def test_there_are_as_many_tools_as_chat_takes() -> None:
    assert len(chat_of(tools=[F] * 128)["tools"]) == 128


def test_a_conversation_has_as_many_messages_as_chat_takes() -> None:
    assert chat_of(input=[user("x")] * 10_000)
    with pytest.raises(InvalidRequestError, match=r"^input must hold at most 10,000 messages"):
        chat_of(input=[user("x")] * 10_001)


OWN = {"id", "call_id", "created_at", "completed_at", "logprob", "input_tokens_details"}


def without_own(response: dict[str, Any]) -> dict[str, Any]:
    """Leave out what two responses to the same request do not share."""

    def shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if name not in OWN}

    return json.loads(json.dumps(response), object_pairs_hook=shared)


@pytest.mark.parametrize("door", DOORS)
def test_a_text(model: GenAIModel, door: str) -> None:
    given = {"metadata": {"a": "b"}, "user": "u", "temperature": 0, "instructions": "Be brief."}
    response = ask(model, History(), door, input=SPAIN, **given)
    (message,) = response["output"]
    assert text_of(message) == "The capital of Spain is Madrid."
    assert (response["status"], message["status"]) == ("completed", "completed")
    assert response["completed_at"] >= response["created_at"]
    assert response["model"] == model.name
    assert {name: response[name] for name in given} == given
    usage = response["usage"]
    assert usage["output_tokens"] == 8
    assert usage["total_tokens"] == usage["input_tokens"] + 8
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert message["content"][0]["logprobs"] == []


def test_what_was_cached_is_told(demo: Path) -> None:
    with GenAIModel(demo) as model:
        chat = read_request({"input": SPAIN * 5}, History()).chat
        model.chat(**chat)
        cached = model.chat(**chat)["usage"]["prompt_tokens_details"]["cached_tokens"]
        response = ask(model, History(), "whole", input=SPAIN * 5)
    assert cached > 0
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == cached


BOTH: dict[str, dict[str, Any]] = {
    "a text": {"input": SPAIN, "include": [LOGPROBS]},
    "a cut text": {"input": SPAIN, "max_output_tokens": 3, "include": [LOGPROBS]},
    "calls": {"input": WEATHER, "tools": FLAT[:1], "include": [LOGPROBS]},
    "a cut call": {"input": WEATHER, "tools": FLAT[:1], "max_output_tokens": 14},
    "a schema": {"input": SPAIN, "text": {"format": ONE}, "include": [LOGPROBS]},
}


@pytest.mark.parametrize("name", BOTH)
def test_a_stream_ends_with_what_a_whole_response_is(model: GenAIModel, name: str) -> None:
    whole, streamed = (ask(model, History(), door, **BOTH[name]) for door in DOORS)
    assert without_own(streamed) == without_own(whole)


@pytest.mark.parametrize("door", DOORS)
def test_logprobs_are_those_of_the_text(model: GenAIModel, door: str) -> None:
    asked = {"include": [LOGPROBS], "top_logprobs": 2}
    (message,) = ask(model, History(), door, input=SPAIN, **asked)["output"]
    (part,) = message["content"]
    assert b"".join(bytes(t["bytes"]) for t in part["logprobs"]).decode() == part["text"]
    assert {len(token["top_logprobs"]) for token in part["logprobs"]} == {2}


@pytest.mark.parametrize("door", DOORS)
def test_a_response_that_is_cut_is_incomplete(model: GenAIModel, door: str) -> None:
    response = ask(model, History(), door, input=SPAIN, max_output_tokens=3)
    (message,) = response["output"]
    assert text_of(message) == "The capital of"
    assert (response["status"], message["status"]) == ("incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


@pytest.mark.parametrize("door", DOORS)
def test_a_call_that_is_cut_is_incomplete(model: GenAIModel, door: str) -> None:
    asked = {"input": WEATHER, "tools": FLAT[:1], "max_output_tokens": 14}
    (call,) = ask(model, History(), door, **asked)["output"]
    assert (call["type"], call["name"], call["status"]) == (
        *("function_call", "get_weather", "incomplete"),
    )
    assert '{"city": "Paris"}'.startswith(call["arguments"])


@pytest.mark.parametrize("door", DOORS)
def test_a_call_and_its_result(model: GenAIModel, door: str) -> None:
    history = History()
    choice = {"type": "function", "name": "get_weather"}
    response = ask(model, history, door, input=WEATHER, tools=FLAT, tool_choice=choice)
    (call,) = response["output"]
    assert (call["name"], call["status"]) == ("get_weather", "completed")
    assert set(json.loads(call["arguments"])) == {"city"}
    assert (response["tool_choice"], response["tools"][0]) == (choice, {**FLAT[0], "strict": False})
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "21 degrees"}
    asked = [user(WEATHER), call, result]
    known = read_request({"input": asked, "tools": FLAT}, history).chat
    body = {"previous_response_id": response["id"], "input": [result], "tools": FLAT}
    assert read_request(body, history).chat == known
    assert ask(model, history, door, **body)["status"] == "completed"


@pytest.mark.parametrize("door", DOORS)
def test_a_schema_holds(model: GenAIModel, door: str) -> None:
    response = ask(model, History(), door, input=SPAIN, text={"format": ONE})
    assert json.loads(text_of(response["output"][0])) == {"n": 1}
    assert response["text"] == {"format": ONE}


@pytest.fixture(scope="module")
def thinking_model(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenAIModel]:
    with GenAIModel(thinker(demo, tmp_path_factory.mktemp("thinking") / "model")) as model:
        yield model


SUNNY: dict[str, Any] = {"input": WEATHER, "choice": ["Sunny."]}


@pytest.mark.parametrize("door", DOORS)
def test_a_thought_is_an_item_before_the_text(thinking_model: GenAIModel, door: str) -> None:
    history = History()
    asked = {**SUNNY, "include": [LOGPROBS]}
    response = ask(thinking_model, history, door, **asked)
    thought, message = response["output"]
    assert (thought["type"], thought["summary"], thought["status"]) == (
        "reasoning",
        [],
        "completed",
    )
    assert (text_of(thought), text_of(message)) == (THOUGHT, "Sunny.")
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 18}
    tokens = message["content"][0]["logprobs"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == " Sunny."
    again = read_request({"input": "x", "previous_response_id": response["id"]}, history).chat
    assert again["messages"][1] == assistant("Sunny.", reasoning_content=THOUGHT)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("most", "shown"), [(1, [""]), (3, ['[{"name']), (18, [THOUGHT])])
def test_a_thought_that_is_cut(
    thinking_model: GenAIModel, door: str, most: int, shown: list[str]
) -> None:
    response = ask(thinking_model, History(), door, input=WEATHER, max_output_tokens=most)
    assert [text_of(item) for item in response["output"]] == shown
    assert response["output"][-1]["status"] == response["status"] == "incomplete"


def test_an_effort_is_the_templates(demo: Path, tmp_path: Path, model: GenAIModel) -> None:
    asked = {"input": SPAIN, "reasoning": {"effort": "high"}, "max_output_tokens": 1}
    with GenAIModel(channels(demo, tmp_path / "model")) as harmony:
        told = ask(harmony, History(), "whole", **asked)
    assert told["reasoning"] == {"effort": "high", "summary": None}
    with pytest.raises(UnsupportedParameterError, match=r"^reasoning\.effort is not") as caught:
        ask(model, History(), "whole", **asked)
    assert caught.value.param == "reasoning.effort"


OF_CHAT: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "a schema": (
        {"text": {"format": {**ONE, "schema": {"$ref": "#/none"}}}},
        "text.format",
        "^text.format",
    ),
    "a limit": (
        {"max_output_tokens": 10**6},
        "max_output_tokens",
        "max_output_tokens is 1,000,000.*Lower max_output_tokens",
    ),
    "a text that is none": ({"input": [user("x"), user("\ud800")]}, "input", "^input holds a lone"),
    "two forms": (
        {"text": {"format": ONE}, "regex": "x"},
        "regex",
        "^text.format and regex cannot",
    ),
}


@pytest.mark.parametrize("name", OF_CHAT)
def test_errors_of_chat_have_this_apis_names(model: GenAIModel, name: str) -> None:
    body, param, message = OF_CHAT[name]
    with pytest.raises(InvalidRequestError, match=message) as caught:
        ask(model, History(), "whole", **{"input": "x", **body})
    assert (caught.value.param or "").startswith(param or "")


PLACES: list[tuple[str, str]] = [
    ("messages[0].content is x.", "instructions is x."),
    ("messages[1].content is x.", "previous_response_id is x."),
    ("messages[2].role is x.", "input[0].role is x."),
    ("messages[3] is x.", "input[1] is x."),
    ("messages[3].content[4] is x.", "input[2].content[4] is x."),
    ("messages[4].content is x.", "input[4].output is x."),
    ("messages has too many messages.", "input has too many messages."),
    ("max_length is x, and max_tokens y.", "max_length is x, and max_output_tokens y."),
    ("reasoning_effort is x.", "reasoning.effort is x."),
    ("temperature is x.", "temperature is x."),
]


@pytest.mark.parametrize(("chats", "own"), PLACES)
def test_places_of_chat_are_those_of_items(chats: str, own: str) -> None:
    history = History()
    made(history, "a")
    items = [user("x"), THINKS, said("y"), CALL, RESULT]
    asked = {"instructions": "x", "previous_response_id": "a", "input": items}
    request = read_request(asked, history)
    with pytest.raises(GenerationTimeoutError) as caught, request.named():
        raise GenerationTimeoutError(chats, param=chats.split()[0])
    assert (str(caught.value.message), caught.value.param) == (own, own.split()[0])


def test_the_place_of_a_text_is_the_input() -> None:
    request = read_request({"input": "x"}, History())
    with pytest.raises(InvalidRequestError, match=r"^input is x\."), request.named():
        raise InvalidRequestError("messages[0].content is x.", param="messages[0].content")


@pytest.mark.parametrize("door", DOORS)
def test_a_response_goes_on_from_the_one_before(model: GenAIModel, door: str) -> None:
    history = History()
    first = ask(model, history, door, input=SPAIN, instructions="Be brief.", include=[LOGPROBS])
    body = {"previous_response_id": first["id"], "input": "And of France?"}
    second = ask(model, history, door, **body)
    assert second["previous_response_id"] == first["id"]
    assert second["instructions"] is None
    told = [user(SPAIN), assistant(text_of(first["output"][0])), user("And of France?")]
    assert read_request(body, history).chat["messages"] == told
    third = read_request({"previous_response_id": second["id"], "input": "x"}, history).chat
    assert third["messages"] == [*told, assistant(text_of(second["output"][0])), user("x")]


ONE_BYTES = len('[{"role":"user","content":"x"}]')


def made(history: History, response_id: str, text: str = "x", **body: Any) -> None:
    request = read_request({"input": text, **body}, history)
    request.keep({"id": response_id, "output": []}, history)


def known(history: History, *ids: str) -> list[str]:
    """List which ids are kept, without using them."""
    return [response_id for response_id in ids if response_id in history]


def test_what_is_kept_of_a_conversation_is_what_it_says() -> None:
    deep: Any = []
    for _ in range(40_000):
        deep = [deep]
    part = {"type": "input_text", "text": "x", "annotations": deep, "logprobs": deep}
    items = [{"role": "user", "content": [part], "id": deep}, THINKS, CALL, RESULT]
    history = History()
    request = read_request({"input": items}, history)
    request.keep({"id": "a", "output": [{**THINKS, "summary": []}, said("y")]}, history)
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    assert [json.loads(turn) for turn in history.turns("a")] == [
        [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            thought,
            CALL,
            RESULT,
            thought,
            {"role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
        ]
    ]


def test_what_is_not_stored_is_not_kept() -> None:
    history = History()
    made(history, "a", store=False)
    assert (len(history), history.bytes) == (0, 0)
    with pytest.raises(ResponseNotFoundError, match=r"^previous_response_id must be") as caught:
        read_request({"input": "x", "previous_response_id": "a"}, history)
    assert (caught.value.param, caught.value.status) == ("previous_response_id", 404)
    assert caught.value.to_openai()["error"]["code"] == "previous_response_not_found"


def test_the_least_recently_used_are_forgotten() -> None:
    history = History(max_responses=2)
    made(history, "a")
    made(history, "b")
    history.turns("a")
    made(history, "c")
    assert known(history, "a", "b", "c") == ["a", "c"]
    assert history.bytes == sum(len(turn) for i in "ac" for turn in history.turns(i))
    history = History(max_responses=0)
    made(history, "a")
    assert (len(history), history.bytes) == (0, 0)


def test_history_has_as_many_bytes_as_it_may() -> None:
    one = ONE_BYTES
    exact = History(max_bytes=2 * one)
    for response_id in "abc":
        made(exact, response_id)
    assert (known(exact, *"abc"), exact.bytes) == (["b", "c"], 2 * one)
    made(exact, "d", "xx")  # a byte more leaves room for no other
    assert (known(exact, *"bcd"), exact.bytes) == (["d"], one + 1)
    small = History(max_bytes=one)
    made(small, "a")
    made(small, "a")
    made(small, "b", "xx")  # does not fit alone, and drives nothing out
    assert (known(small, *"ab"), small.bytes) == (["a"], one)


def test_a_conversation_counts_with_all_of_its_turns() -> None:
    history = History()
    made(history, "a")
    made(history, "b", previous_response_id="a")
    assert history.bytes == 3 * ONE_BYTES
    first, second = history.turns("b")
    assert first == second
    assert first is history.turns("a")[0]


def test_a_conversation_goes_on_though_it_was_forgotten_meanwhile() -> None:
    history = History(max_responses=1)
    made(history, "a")
    request = read_request({"input": "y", "previous_response_id": "a"}, history)
    made(history, "b")
    request.keep({"id": "c", "output": []}, history)
    assert len(history.turns("c")) == 2


def test_history_is_used_by_many_threads() -> None:
    history = History(max_responses=3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: made(history, str(i)), range(2000)))
    assert (len(history), history.bytes) == (3, 3 * ONE_BYTES)


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"created": 1, "model": "m", "choices": [choice]}


PIECES: list[tuple[list[dict[str, Any]], list[tuple[str, str]]]] = [
    ([{"content": ""}], [("message", "")]),
    ([{"content": "a"}, {"content": ""}, {"content": "b"}], [("message", "ab")]),
    (
        [
            {"content": "a"},
            {"tool_calls": [{"index": 0, "id": "i", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
            {"tool_calls": [{"index": 1, "id": "j", "function": {"name": "g", "arguments": ""}}]},
            {"content": "b"},
        ],
        [("message", "a"), ("function_call", "{}"), ("function_call", ""), ("message", "b")],
    ),
    (
        [{"reasoning_content": "r"}, {"content": "a"}, {"reasoning_content": "s"}],
        [("reasoning", "r"), ("message", "a"), ("reasoning", "s")],
    ),
]


@pytest.mark.parametrize(("deltas", "items"), PIECES)
def test_items_are_in_the_order_in_which_they_were_written(
    deltas: list[dict[str, Any]], items: list[tuple[str, str]]
) -> None:
    events = Events(read_request({"input": "x"}, History()))
    made = [event for delta in deltas for event in events.add(chunk(delta))]
    made += events.add(chunk({}, "stop"))
    response = valid_events([*made, *events.end()])
    assert [(item["type"], text_of(item)) for item in response["output"]] == items
    assert {item["status"] for item in response["output"]} == {"completed"}


ENTRIES = [{"bytes": list(text)} for text in (b"<t>", b"ab", b"\xc3", b"\xa9c", b"</t>", b"d")]


@pytest.mark.parametrize(
    ("texts", "taken"),
    [
        (["ab"], [[1]]),
        (["abé"], [[1, 2, 3]]),
        (["abéc", "d"], [[1, 2, 3], [5]]),
        (["a", "b"], [[1], []]),
        (["b", "éc"], [[1], [2, 3]]),
        (["z", "d"], [[0, 1, 2, 3, 4, 5], []]),
    ],
)
def test_tokens_of_a_text_are_found(texts: list[str], taken: list[list[int]]) -> None:
    tokens = TextTokens()
    tokens.add(ENTRIES)
    found = [tokens.take(text) for text in texts]
    assert [[ENTRIES.index(entry) for entry in entries] for entries in found] == taken


def test_tokens_of_what_is_no_text_are_not_told() -> None:
    entries = [{"token": "ab", "bytes": [97, 98], "logprob": i, "top_logprobs": []} for i in "abc"]
    events = Events(read_request({"input": "x"}, History()))
    call = {"index": 0, "id": "i", "function": {"name": "f", "arguments": "ab"}}
    deltas = [{"reasoning_content": "ab"}, {"tool_calls": [call]}, {"content": "ab"}]
    for delta, entry in zip(deltas, entries, strict=True):
        made = chunk(delta)
        made["choices"][0]["logprobs"] = {"content": [entry]}
        events.add(made)
    events.end()
    assert events.response["output"][-1]["content"][0]["logprobs"] == entries[2:]


def failing(error: GenAIError, *before: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    async def chunks() -> AsyncGenerator[dict[str, Any]]:
        for delta in before:
            yield chunk(delta)
        raise error

    return chunks()


ERRORS: list[tuple[GenAIError, str]] = [
    (GenerationTimeoutError("The time is over.", param="timeout"), "server_error"),
    (MemoryBudgetError("Too much."), "rate_limit_exceeded"),
    (InvalidRequestError("response_format is bad."), "invalid_prompt"),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda given: str(type(given)))
def test_an_error_is_raised_before_the_first_event_and_is_one_later(
    error: GenAIError, code: str
) -> None:
    history = History()
    request = read_request({"input": "x"}, history)

    async def events(*before: dict[str, Any]) -> list[dict[str, Any]]:
        return [event async for event in stream(request, failing(error, *before), history)]

    with pytest.raises(type(error)):
        asyncio.run(events())
    response = valid_events(asyncio.run(events({"reasoning_content": "r"}, {"content": "a"})))
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    message = str(error).replace("response_format", "text.format")
    assert response["error"] == {"code": code, "message": message}
    assert len(history) == 0


def test_a_closed_stream_closes_its_chunks(model: GenAIModel) -> None:
    history = History()
    request = read_request({"input": SPAIN, "ignore_eos": True}, history)

    async def leave() -> None:
        chunks = model.astream_chat(**request.chat)
        async with aclosing(stream(request, chunks, history)) as events:
            assert (await anext(events))["type"] == "response.created"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)

    asyncio.run(leave())
    assert len(history) == 0


def app(model: GenAIModel, history: History) -> FastAPI:
    """Serve a model: what is here is all that a server needs for this API."""
    served = FastAPI()

    @served.post("/v1/responses")
    async def create(body: dict[str, Any]) -> Any:
        request = read_request(body, history)
        if not request.stream:
            return await respond(request, model.achat(**request.chat), history)
        events = stream(request, model.astream_chat(**request.chat), history)
        first = await anext(events)  # until here, an error has its status

        async def written() -> AsyncGenerator[str]:
            async with aclosing(events):
                yield sse(first)
                async for event in events:
                    yield sse(event)

        return StreamingResponse(written(), media_type="text/event-stream")

    @served.exception_handler(GenAIError)
    async def refuse(_: Any, error: GenAIError) -> JSONResponse:
        return JSONResponse(error.to_openai(), error.status)

    return served


@pytest.fixture(scope="module")
def url(thinking_model: GenAIModel, model: GenAIModel) -> Iterator[str]:
    history = History()
    served = app(model, history)
    served.mount("/thinking", app(thinking_model, history))
    with running(served) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


class City(BaseModel):
    capital: Literal["Madrid"]


def test_the_client_creates(client: openai.OpenAI) -> None:
    first = client.responses.create(model="phi3", input=SPAIN, temperature=0)
    assert first.output_text == "The capital of Spain is Madrid."
    second = client.responses.create(model="phi3", input="Hi.", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    again = client.responses.create(
        model="phi3",
        input=[{"role": "user", "content": SPAIN}, *first.output, {"role": "user", "content": "?"}],  # pyright: ignore[reportArgumentType] - what the client's documentation does
    )
    assert again.status == "completed"


def test_the_client_parses(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model="phi3", input=SPAIN, text_format=City)
    assert parsed.output_parsed == City(capital="Madrid")
    history: Any = [{"role": "user", "content": SPAIN}, *parsed.output]
    again = client.responses.parse(
        model="phi3", input=[*history, {"role": "user", "content": "?"}], text_format=City
    )
    assert again.output_parsed == City(capital="Madrid")


def test_the_client_streams(client: openai.OpenAI) -> None:
    with client.responses.stream(model="phi3", input=SPAIN, text_format=City) as events:
        deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        final: ParsedResponse[City] = events.get_final_response()
    assert final.output_parsed == City(capital="Madrid")
    assert deltas == final.output_text
    created = client.responses.create(model="phi3", input=SPAIN, stream=True)
    assert [event.type for event in created][-1] == "response.completed"


def test_the_client_calls_functions(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(City, name="note", description="Notes it.")]
    flat: Any = [{"type": "function", **tool["function"]} for tool in tools]
    with client.responses.stream(
        model="phi3", input=SPAIN, tools=flat, tool_choice="required", parallel_tool_calls=False
    ) as events:
        final: Any = events.get_final_response()
    (call,) = final.output
    assert call.parsed_arguments == City(capital="Madrid") or json.loads(call.arguments)
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"}]
    told = client.responses.create(
        model="phi3", input=result, previous_response_id=final.id, tools=flat
    )
    assert told.status == "completed"


def test_the_client_reads_thoughts(url: str) -> None:
    base = url.removesuffix("/v1") + "/thinking/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
        asked: Any = {"model": "phi3", "input": WEATHER, "extra_body": {"choice": ["Sunny."]}}
        response: Any = client.responses.create(**asked)
        events: Any = list(client.responses.create(**asked, stream=True))
    thought, message = response.output
    assert (thought.content[0].text, message.content[0].text) == (THOUGHT, "Sunny.")
    deltas = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == THOUGHT


def test_the_client_awaits(url: str) -> None:
    async def run() -> tuple[Any, Any, Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            created = await client.responses.create(model="phi3", input=SPAIN)
            parsed = await client.responses.parse(model="phi3", input=SPAIN, text_format=City)
            async with client.responses.stream(model="phi3", input=SPAIN) as events:
                return created, parsed, await events.get_final_response()

    created, parsed, final = asyncio.run(run())
    assert created.output_text == final.output_text == "The capital of Spain is Madrid."
    assert parsed.output_parsed == City(capital="Madrid")


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_gets_errors(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(
            model="phi3", input="x", previous_response_id="resp_none", stream=stream
        )
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="phi3", input="x", max_output_tokens=10**6, stream=stream)
    assert refused.value.param == "max_output_tokens"
