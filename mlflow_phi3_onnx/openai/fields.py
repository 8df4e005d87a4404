"""Checks of request fields: each returns the clean value or raises ValueError."""

from __future__ import annotations

from typing import Any

from mlflow_phi3_onnx.core.checks import boolean, integer, json_object, number, one_of

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_BIASES = 1024
MAX_TOOLS = 128
GIVEN_TO_TEMPLATES = ("messages", "tools", "add_generation_prompt", "chat_template", "tokenize")


def stop(value: Any) -> tuple[str, ...]:
    """Check stop sequences: a string or a list of them."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        raise ValueError
    if not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops):
        raise ValueError
    return tuple(stops)


def logit_bias(value: Any) -> dict[int, float]:
    """Check biases by token id; JSON has the ids as strings."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError
    bias = number(-100, 100)
    return {_token_id(key): bias(number) for key, number in value.items()}


def _token_id(key: Any) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
        key = int(key)
    return integer(0, 2**31 - 1)(key)


def template_kwargs(value: Any) -> dict[str, Any]:
    """Check values for the chat template, by names that can be variables of it."""
    for name in json_object(value):
        if not isinstance(name, str) or not name.isidentifier() or name in GIVEN_TO_TEMPLATES:
            raise ValueError
    return value


def stream_options(value: Any) -> dict[str, bool]:
    """Check the options of a stream."""
    options = json_object(value)
    if options.keys() - {"include_usage"}:
        raise ValueError
    return {key: boolean(flag) for key, flag in options.items()}


def tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Check tool definitions in OpenAI's form."""
    if not isinstance(value, list | tuple) or len(value) > MAX_TOOLS:
        raise ValueError
    for tool in value:
        function = json_object(json_object(tool).get("function"))
        if tool.get("type") != "function" or not isinstance(function.get("name"), str):
            raise ValueError
        if function.get("strict") not in (None, False, True):
            raise ValueError
    return tuple(value)


def tool_choice(value: Any) -> str | dict[str, Any]:
    """Check which tools are to be called: a word, or an object that names one function."""
    if isinstance(value, str):
        return one_of(value, ("none", "auto", "required"))
    function = json_object(json_object(value).get("function"))
    if value.keys() != {"type", "function"} or value["type"] != "function":
        raise ValueError
    if function.keys() != {"name"} or not isinstance(function["name"], str):
        raise ValueError
    return value
