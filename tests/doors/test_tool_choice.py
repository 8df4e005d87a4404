"""Tool calls that are enforced: required, by name, strict, and one alone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.tools.formats.registry import SETTINGS
from tests.support.tool_cases import (
    PARAMETERS,
    SPAIN,
    TOOLS,
    WEATHER,
    check_calls,
    closed,
    named,
    tool,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_function_is_called_once(model: GenAIModel, name: str) -> None:
    rows = [
        {"messages": SPAIN, "tools": TOOLS, "tool_choice": named(name), "max_tokens": 300, **more}
        for more in [{}, *({"temperature": 1.5, "seed": seed} for seed in range(5))]
    ]
    for answer in model.run("llm/v1/chat", rows):
        assert check_calls(answer["choices"][0]) == [name]


def test_a_required_call_comes(model: GenAIModel) -> None:
    rows = [
        {"messages": SPAIN, "tools": TOOLS, "tool_choice": "required", "max_tokens": 600, **more}
        for more in [{}, *({"temperature": 2, "seed": seed} for seed in range(12))]
    ]
    answers = [answer["choices"][0] for answer in model.run("llm/v1/chat", rows)]
    whole = [check_calls(c) for c in answers if c["finish_reason"] != "length"]
    assert len(whole) > 8
    single = model.run("llm/v1/chat", [{**row, "parallel_tool_calls": False} for row in rows])
    assert all(len(check_calls(answer["choices"][0])) == 1 for answer in single)


def test_a_required_call_goes_on_with_its_result(model: GenAIModel) -> None:
    message = model.chat(WEATHER, tools=TOOLS[:1], tool_choice="required")["choices"][0]["message"]
    result = {
        "role": "tool",
        "tool_call_id": message["tool_calls"][0]["id"],
        "content": '{"temperature": 21}',
    }
    answer = model.chat([*WEATHER, message, result], tools=TOOLS[:1])["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert "21" in answer["message"]["content"]


@pytest.mark.parametrize("more", [{"parallel_tool_calls": False}, {"strict": True}], ids=str)
def test_an_enforced_form_leaves_the_model_free_to_answer(
    model: GenAIModel, more: dict[str, Any]
) -> None:
    strict = more.pop("strict", False)
    city = closed(city={"type": "string"})
    tools = [tool("get_weather", city, description="Get the weather in a city.", strict=strict)]
    free = [{"role": "user", "content": "What is the capital of Spain?"}]
    text = model.chat(free, tools=tools, **more)["choices"][0]
    assert text["finish_reason"] == "stop"
    assert (
        text["message"]["content"]
        == model.chat(free, tools=tools)["choices"][0]["message"]["content"]
    )
    call = model.chat(WEATHER, tools=tools, **more)["choices"][0]
    assert check_calls(call) == ["get_weather"]


def test_a_strict_function_s_arguments_match_however_the_model_babbles(model: GenAIModel) -> None:
    color = closed(city={"type": "string", "pattern": "^[a-z]{4}$"})
    tools = [tool("get_weather", color, description="Get the weather in a city.", strict=True)]
    choice = model.chat(WEATHER, tools=tools)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    jsonschema.Draft202012Validator(color).validate(json.loads(call["function"]["arguments"]))


def test_an_answer_s_form_leaves_the_model_free_to_call(model: GenAIModel) -> None:
    one = closed(n={"enum": [1]})
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": one}}
    fields: dict[str, Any] = {"tools": TOOLS[:1], "response_format": form, "max_tokens": 60}
    call = model.chat(WEATHER, **fields)["choices"][0]
    assert check_calls(call) == ["get_weather"]
    token = model.tokenize("<|tool_call|>")[-1]
    text = model.chat(WEATHER, **fields, logit_bias={str(token): -100})["choices"][0]
    assert (text["finish_reason"], json.loads(text["message"]["content"])) == ("stop", {"n": 1})
    *_, last = model.stream_chat(WEATHER, **fields)
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    allowed = {"mode": "auto", "tools": [named("add")]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    (choice,) = model.chat(WEATHER, **{**fields, "tools": TOOLS}, tool_choice=choice)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert {call["function"]["name"] for call in choice["message"]["tool_calls"]} == {"add"}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tool_choice": "required"}, "tools", "needs tools"),
        ({"tool_choice": named("x"), "tools": TOOLS}, "tool_choice", "not among the tools"),
        (
            {"tool_choice": "required", "tools": TOOLS, "min_tokens": 2},
            "min_tokens",
            "A grammar for tool calls says where the completion ends",
        ),
        (
            {"tool_choice": "required", "tools": TOOLS, "response_format": {"type": "json_object"}},
            "response_format",
            "leaves no room for tool calls",
        ),
        (
            {"tool_choice": "required", "tools": [tool("f", {"type": "array"})]},
            "tools",
            "a JSON schema of an object",
        ),
        (
            {"tool_choice": "required", "tools": [tool("f", {"properties": {"a": {"type": "x"}}})]},
            "tools",
            "Invalid type: x.",
        ),
        (
            {"tools": [tool("f", closed(a={"multipleOf": 10**7}), strict=True)]},
            "tools",
            "common multiple",
        ),
        ({"tools": [tool("f", strict="yes")]}, "tools", "strict, true or false"),
        ({"tools": [tool("")]}, "tools", "a function with a name"),
        (
            {
                "tool_choice": "required",
                "tools": [tool(f"f{i}", closed(a={"enum": ["x" * 9000]})) for i in range(20)],
            },
            "tools",
            "more than 131,072 characters",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_enforced_is_refused(
    model: GenAIModel, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        model.chat(SPAIN, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_names_of_every_kind_can_be_enforced(model: GenAIModel) -> None:
    for name in ['with "quotes"', "dotted.name/path", "ünïcode 😀", "back\\slash"]:
        tools = [tool(name, closed(a={"enum": [1, 2]}))]
        choice = model.run(
            "llm/v1/chat",
            [{"messages": SPAIN, "tools": tools, "tool_choice": "required", "temperature": 1}],
        )[0]["choices"][0]
        assert {c["function"]["name"] for c in choice["message"]["tool_calls"]} == {name}


@pytest.fixture(scope="module")
def unknown(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, with other marks of calls."""
    folder = tmp_path_factory.mktemp("unknown") / "model"
    shutil.copytree(demo, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace("<|tool_call|>", "<|call|>").replace("<|/tool_call|>", "<|/call|>")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_of_an_unknown_format_calls_stay_text_and_are_not_required(
    unknown: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with GenAIModel(unknown) as model:
        told = [record.message for record in caplog.records if "tool_format" in record.message]
        assert len(told) == 1
        for more in ({}, {"parallel_tool_calls": False}, {"tool_choice": "auto"}):
            choice = model.chat(WEATHER, tools=TOOLS[:1], max_tokens=40, **more)["choices"][0]
            assert choice["message"]["content"].startswith("<|call|>")
            assert "tool_calls" not in choice["message"]
        with pytest.raises(UnsupportedParameterError, match="leaves no room for tool") as caught:
            model.chat(WEATHER, tools=TOOLS[:1], regex="a")
        assert caught.value.param == "regex"
        for forced in ("required", named("get_weather")):
            with pytest.raises(UnsupportedParameterError, match="Set tool_format") as caught:
                model.chat(WEATHER, tools=TOOLS[:1], tool_choice=forced)
            assert caught.value.param == "tool_choice"
    with GenAIModel(unknown, model_config={"tool_format": "hermes"}) as model:
        fields = {"tools": TOOLS[:1], "tool_choice": "required", "max_tokens": 300}
        check_calls(model.chat(WEATHER, **fields)["choices"][0])


def test_a_format_that_is_not_known_is_refused(demo: Path) -> None:
    with pytest.raises(
        InvalidRequestError, match="one of auto, none, harmony, functools, phi4_mini"
    ) as caught:
        GenAIModel(demo, model_config={"tool_format": "phi5"})
    assert caught.value.param == "tool_format"


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_only_allowed_tools_are_called_and_all_are_shown(model: GenAIModel) -> None:
    names = ("add_numbers", "stop_all")
    rows = [
        {
            "messages": SPAIN,
            "tools": TOOLS,
            "tool_choice": allowed("required", *names),
            "temperature": 1.5,
            "seed": seed,
            "max_tokens": 400,
        }
        for seed in range(8)
    ]
    answers = model.run("llm/v1/chat", rows)
    called = [
        name
        for answer in answers
        if answer["choices"][0]["finish_reason"] != "length"
        for name in check_calls(answer["choices"][0])
    ]
    assert set(called) == set(names)
    usual = model.chat(SPAIN, tools=TOOLS, max_tokens=1)
    assert answers[0]["usage"]["prompt_tokens"] == usual["usage"]["prompt_tokens"]


def test_with_allowed_tools_a_model_may_answer_or_call_one_of_them(model: GenAIModel) -> None:
    city = closed(city={"type": "string"})
    tools = [tool("get_weather", city, description="Get the weather in a city."), tool("g")]
    auto = model.chat(WEATHER, tools=tools, tool_choice=allowed("auto", "get_weather"))
    assert check_calls(auto["choices"][0]) == ["get_weather"]
    other = model.chat(WEATHER, tools=tools, tool_choice=allowed("auto", "g"), max_tokens=60)
    for call in other["choices"][0]["message"].get("tool_calls", []):
        assert call["function"]["name"] == "g"
    text = model.chat(SPAIN, tools=tools, tool_choice=allowed("auto", "g"))["choices"][0]
    assert text["message"] == model.chat(SPAIN, tools=tools)["choices"][0]["message"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (allowed("auto"), "'tools': [{'type'"),
        (allowed("none", "f"), "'mode': 'auto' or 'required'"),
        (allowed("auto", "x"), "not among the tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "'allowed_tools': {'mode'"),
    ],
)
def test_allowed_tools_are_checked(model: GenAIModel, choice: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        model.chat(SPAIN, tools=TOOLS, tool_choice=choice)
    assert caught.value.param == "tool_choice"
    assert says in caught.value.message


# Harmony's calls come after free thoughts, which the demo model does not end: see test_reasoning.
@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in ("auto", "none", "harmony")])
def test_calls_of_every_format_are_enforced(demo: Path, name: str) -> None:
    """The demo model was not trained on them, and writes their marks as text."""
    with GenAIModel(demo, model_config={"tool_format": name}) as model:
        fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 500}
        rows = [
            {"messages": SPAIN, **fields, "temperature": 1.5, "seed": seed} for seed in range(4)
        ]
        answers = [answer["choices"][0] for answer in model.run("llm/v1/chat", rows)]
        for answer in answers:
            if answer["finish_reason"] != "length":
                assert check_calls(answer)
        assert {answer["finish_reason"] for answer in answers} >= {"tool_calls"}
        one = {**fields, "temperature": 1.5, "seed": 0, "parallel_tool_calls": False}
        state = ChatCompletionStreamState()
        for chunk in model.stream_chat(SPAIN, **one):
            state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
        (streamed,) = state.current_completion_snapshot.model_dump(exclude_none=True)["choices"]
        (whole,) = model.chat(SPAIN, **one)["choices"]
        for call in [*streamed["message"]["tool_calls"], *whole["message"]["tool_calls"]]:
            call.pop("id")
            call.pop("index", None)
        assert streamed["message"]["tool_calls"] == whole["message"]["tool_calls"]
        assert len(whole["message"]["tool_calls"]) == 1
