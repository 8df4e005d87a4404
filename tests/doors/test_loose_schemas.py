"""Schemas as real generators write them: what of them is held, where nothing is strict."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from tests.support.doors import SPAIN
from tests.support.forms import schema_format
from tests.support.tool_cases import closed, named, tool


def check(text: str, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def with_pattern(pattern: str, says: str) -> tuple[dict[str, Any], str]:
    schema = {"type": "string", "maxLength": 3, "pattern": pattern}
    return schema, f"pattern cannot be held: {says}"


LOOSE: dict[str, tuple[dict[str, Any], str]] = {
    "a set": (
        {"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "maxItems": 2},
        'Unimplemented keys: ["uniqueItems"].',
    ),
    "a record": (
        {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": False},
        'Unimplemented keys: ["propertyNames"].',
    ),
    "never": ({"type": "integer", "enum": [7], "not": {}}, 'Unimplemented keys: ["not"].'),
    "a secret": ({"enum": ["x"], "type": "string", "format": "password"}, "Unknown format: pass"),
    "one of two": (
        {"oneOf": [{"type": "integer"}, {"type": "number"}], "enum": [5]},
        "oneOf constraints are not supported",
    ),
    "a condition": (
        {"type": "object", "additionalProperties": False, "if": {}, "then": False},
        'Unimplemented keys: ["if", "then"].',
    ),
    "what is ahead": with_pattern(r"^(?!\.)a", "look-around, including look-ahead"),
    "a group again": with_pattern(r"^(a)\1$", "backreferences"),
    "a word's end": with_pattern(r"\bfoo\b", "lookarounds"),
    "JavaScript's any": with_pattern("^[^]*$", "unclosed character class"),
    "Python's end": with_pattern(r"^\d{4}\Z", "unrecognized escape"),
    "JavaScript's control": with_pattern(r"^\cJ$", "unrecognized escape"),
    "names of a pattern": (
        {
            "type": "object",
            "patternProperties": {"(?=a)": {"type": "null"}},
            "additionalProperties": False,
        },
        "patternProperties cannot be held: look-around",
    ),
    "a safe integer's length": (
        {"type": "string", "pattern": "^x$", "maxLength": 2**53 - 1},
        "maxLength cannot be held: decimal literal invalid",
    ),
    "numbers of any size": (
        {"type": "number", "multipleOf": 1, "maximum": 0, "minimum": -sys.float_info.max},
        "minimum cannot be held: Failed to generate regex for float range",
    ),
    "a title for an id": (
        {"enum": [7], "$id": "My Schema"},
        "$id cannot be held: Invalid URI reference",
    ),
    "a dialect of one's own": (
        {"enum": [7], "$schema": "https://example.com/d"},
        "$schema cannot be held: Resource",
    ),
}
"""Schemas of pydantic, zod and MCP with something that cannot be held."""


@pytest.mark.parametrize(("schema", "says"), LOOSE.values(), ids=LOOSE)
def test_what_cannot_be_held_is_left_out_where_nothing_is_strict(
    model: GenAIModel, schema: dict[str, Any], says: str
) -> None:
    left_out = ("uniqueItems", "not", "if", "then", "oneOf", "propertyNames", "pattern", "$id")
    held = {key: schema[key] for key in schema if key not in left_out}
    named = {"type": "function", "function": {"name": "get_weather"}}
    weather = {"name": "get_weather", "parameters": closed(a=schema)}
    for strict in (None, False):
        form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}
        answer = model.chat(SPAIN, response_format=form, max_tokens=20)["choices"][0]
        assert answer["finish_reason"] == "stop"
        check(answer["message"]["content"], held)
        tool = {"type": "function", "function": {**weather, "strict": strict}}
        call = model.chat(SPAIN, tools=[tool], tool_choice=named, max_tokens=200)["choices"][0]
        assert call["finish_reason"] == "tool_calls"
        check(call["message"]["tool_calls"][0]["function"]["arguments"], closed(a=held))
    strictly = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    with pytest.raises(InvalidRequestError, match="response_format cannot be used") as caught:
        model.chat(SPAIN, response_format=strictly)
    assert says in caught.value.message
    assert "Enable" not in caught.value.message  # an option of llguidance's
    tool = {"type": "function", "function": {**weather, "strict": True}}
    with pytest.raises(InvalidRequestError, match="tools cannot be used as a grammar") as caught:
        model.chat(SPAIN, tools=[tool], tool_choice="required")
    assert says in caught.value.message


def test_what_says_nothing_beside_others_is_taken_where_all_is_strict(model: GenAIModel) -> None:
    schema = {"type": "integer", "enum": [7], "anyOf": [{"pattern": "(?=a)"}]}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    assert model.chat(SPAIN, response_format=form)["choices"][0]["message"]["content"] == "7"


GEMINI = {"type": "OBJECT", "properties": {"a": {"type": "STRING", "enum": ["x"]}}}
BERKELEY = {"type": "dict", "properties": {"a": {"type": "float", "enum": [0.5]}}}
WORDS: dict[str, tuple[dict[str, Any], str]] = {
    "Gemini": ({**GEMINI, "required": ["a"], "additionalProperties": False}, '{"a": "x"}'),
    "Berkeley": ({**BERKELEY, "required": ["a"], "additionalProperties": False}, '{"a": 0.5}'),
    "or null": ({**closed(a={"enum": [1]}), "type": ["object", "null"]}, '{"a": 1}'),
    "a tuple": (closed(a={"type": "tuple", "maxItems": 0}), '{"a": []}'),
    "any": (closed(a={"type": "any", "enum": [None]}), '{"a": null}'),
}


@pytest.mark.parametrize(("schema", "only"), WORDS.values(), ids=WORDS)
def test_a_type_in_other_words_is_the_kind_that_it_means(
    model: GenAIModel, schema: dict[str, Any], only: str
) -> None:
    free = [tool("f", schema)]
    choice = model.chat(SPAIN, tools=free, tool_choice=named("f"), max_tokens=60)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == json.loads(only)
    form = schema_format({**schema, "minProperties": 1})
    text = model.chat(SPAIN, response_format=form, max_tokens=60)["choices"][0]["message"]
    assert json.loads(text["content"]) == json.loads(only)
    strictly = [tool("f", schema, strict=True)]
    with pytest.raises(InvalidRequestError, match="type") as caught:
        model.chat(SPAIN, tools=strictly, tool_choice="required")
    assert caught.value.param == "tools"


def test_a_count_may_be_a_float_without_a_fraction_and_the_prompt_shows_it(
    model: GenAIModel,
) -> None:
    part = {"type": "string", "minLength": 3.0, "maxLength": 3.0}
    schema = closed(a=part, b={"type": "array", "maxItems": 0.0}, c={"const": 2.0})
    for strict in (False, True):
        form = schema_format(schema, strict=strict)
        text = model.chat(SPAIN, response_format=form, max_tokens=60)["choices"][0]["message"]
        check(text["content"], schema)
        tools = [tool("f", schema, strict=strict)]
        choice = model.chat(SPAIN, tools=tools, tool_choice=named("f"), max_tokens=60)["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        check(call["function"]["arguments"], schema)
        assert '"maxItems": 0.0' in model.apply_chat_template(SPAIN, tools=tools)


def test_the_prompt_shows_what_is_left_out(model: GenAIModel) -> None:
    parameters = {**closed(a={"type": "STRING", "pattern": "(?=a)"}), "$id": "My Schema"}
    shown = model.apply_chat_template(SPAIN, tools=[tool("f", parameters)])
    for part in ('"type": "STRING"', '"pattern": "(?=a)"', '"$id": "My Schema"'):
        assert part in shown
    fields: dict[str, Any] = {"tools": [tool("f", parameters)], "max_tokens": 1}
    free, forced = (
        model.chat(SPAIN, tool_choice=choice, **fields)["usage"]["prompt_tokens"]
        for choice in ("auto", "required")
    )
    assert free == forced


def test_names_of_a_caller_s_are_no_keywords(model: GenAIModel) -> None:
    """Nothing is left out, refused or read otherwise because an argument has a keyword's name."""
    names = ("pattern", "$id", "type", "minLength", "default", "patternProperties")
    schema = closed(**{name: {"enum": ["STRING"]} for name in names})
    schema["properties"]["default"] = {"$ref": "#/$defs/pattern"}
    schema["$defs"] = {"pattern": {"enum": [1]}}
    form = schema_format(schema)
    text = model.chat(SPAIN, response_format=form, max_tokens=200)["choices"][0]["message"]
    assert json.loads(text["content"]) == {**dict.fromkeys(names, "STRING"), "default": 1}
    constant = {"enum": [{"pattern": "(?=a)", "minLength": 2.5, "type": "STRING"}]}
    text = model.chat(SPAIN, response_format=schema_format(constant), max_tokens=60)["choices"][0]
    assert json.loads(text["message"]["content"]) == constant["enum"][0]


def test_a_schema_that_is_none_is_named(model: GenAIModel) -> None:
    for schema in (True, [1]):
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        with pytest.raises(
            InvalidRequestError, match=r"\.json_schema\.schema must be a JSON schema"
        ):
            model.chat(SPAIN, response_format=form)


def test_parameters_are_bounded_together_before_they_are_tried(model: GenAIModel) -> None:
    many = closed(**{f"p{i}": {"type": "string", "pattern": f"(?=a{i})"} for i in range(800)})
    tools = [tool(f"f{i}", many) for i in range(4)]
    with pytest.raises(InvalidRequestError, match="more than 131,072 characters"):
        model.chat(SPAIN, tools=tools, tool_choice="required")
