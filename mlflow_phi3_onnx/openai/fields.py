"""Checks of request fields: each returns the clean value or raises ValueError."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlflow_phi3_onnx.core.checks import (
    allows,
    boolean,
    integer,
    is_one,
    json_object,
    number,
    unpacked,
    without_nulls,
)
from mlflow_phi3_onnx.core.schemas import OF_SCHEMAS
from mlflow_phi3_onnx.openai.prompts import dumped

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_STOP_TOKENS = 128
MAX_PAIRS = 16
MAX_KEY_CHARACTERS = 64
MAX_VALUE_CHARACTERS = 512
GIVEN_TO_TEMPLATES = ("messages", "tools", "add_generation_prompt", "chat_template", "tokenize")


class ToolChoice(NamedTuple):
    """Which tools are to be called.

    Attributes:
        mode: ``none``, ``auto`` or ``required``.
        names: The functions that may be called, or None for all of the tools.
        named: Whether it is one function by its name, which is called once.
    """

    mode: str
    names: tuple[str, ...] | None = None
    named: bool = False


@allows(
    f"a string, or a list of at most {MAX_STOPS} strings, of 1 to {MAX_STOP_CHARACTERS:,}"
    " characters each",
    anyOf=[{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
)
def stop(value: Any) -> tuple[str, ...]:
    """Check stop sequences: a string or a list of them."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        raise ValueError
    if not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops):
        raise ValueError
    return tuple(stops)


@allows(f"an object of at most {MAX_BIASES:,} token ids, each with a number from -100 to 100")
def logit_bias(value: Any) -> dict[int, float]:
    """Check biases by token id; JSON has the ids as strings."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError
    bias = number(-100, 100)
    return {_token_id(unpacked(key)): bias(number) for key, number in value.items()}


@allows(
    f"a list of at most {MAX_STOP_TOKENS} token ids, which are integers from 0",
    type="array",
    items={"type": "integer"},
)
def stop_token_ids(value: Any) -> tuple[int, ...]:
    """Check tokens that end a completion."""
    if not isinstance(value, list | tuple) or len(value) > MAX_STOP_TOKENS:
        raise ValueError
    return tuple(map(integer(0), value))


def _token_id(key: Any) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
        key = int(key)
    return integer(0)(key)


@allows(f"an object of JSON values by name, none of {', '.join(GIVEN_TO_TEMPLATES)}")
def template_kwargs(value: Any) -> dict[str, Any]:
    """Check values for the chat template, by names that can be variables of it."""
    for name in json_object(value):
        if not isinstance(name, str) or not name.isidentifier() or name in GIVEN_TO_TEMPLATES:
            raise ValueError
    return value


@allows("['text']")
def modalities(value: Any) -> list[str]:
    """Check what is to be generated."""
    if not isinstance(value, list | tuple) or list(value) != ["text"]:
        raise ValueError
    return ["text"]


@allows(
    "an object with include_usage, true or false, and maybe include_obfuscation, false, for deltas"
    " are not padded"
)
def stream_options(value: Any) -> dict[str, bool]:
    """Check the options of a stream."""
    options = json_object(value)
    if options.keys() - {"include_usage", "include_obfuscation"}:
        raise ValueError
    if not is_one(options.get("include_obfuscation"), None, False):
        raise ValueError
    return {key: boolean(flag) for key, flag in options.items()}


@allows(
    f"a list of at most {MAX_TOOLS} objects with type 'function' and a function with a name, and"
    " maybe strict, true or false"
)
def tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Check tool definitions in OpenAI's form."""
    if not isinstance(value, list | tuple) or len(value) > MAX_TOOLS:
        raise ValueError
    value = dumped(value)
    for tool in value:
        function = json_object(json_object(tool).get("function"))
        name = function.get("name")
        if not is_one(tool.get("type"), "function") or not isinstance(name, str) or not name:
            raise ValueError
        if not is_one(function.get("strict"), None, False, True):
            raise ValueError
    return tuple(without_nulls(tool, OF_SCHEMAS) for tool in value)


@allows(
    "'none', 'auto', 'required', {'type': 'function', 'function': {'name': ...}} or {'type':"
    " 'allowed_tools', 'allowed_tools': {'mode': 'auto' or 'required', 'tools': [{'type':"
    " 'function', 'function': {'name': ...}}, ...]}}"
)
def tool_choice(value: Any) -> ToolChoice:
    """Check which tools are to be called: a word, or an object that names functions."""
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise ValueError
        return ToolChoice(value)
    if is_one(json_object(value).get("type"), "function"):
        return ToolChoice("required", (_function_name(value),), named=True)
    if value.keys() != {"type", "allowed_tools"} or not is_one(value["type"], "allowed_tools"):
        raise ValueError
    allowed = json_object(value["allowed_tools"])
    if allowed.keys() != {"mode", "tools"} or not is_one(allowed["mode"], "auto", "required"):
        raise ValueError
    listed = allowed["tools"]
    if not isinstance(listed, list | tuple) or not 0 < len(listed) <= MAX_TOOLS:
        raise ValueError
    return ToolChoice(allowed["mode"], tuple(map(_function_name, listed)))


@allows(
    f"an object of at most {MAX_PAIRS} strings, of at most {MAX_VALUE_CHARACTERS} characters each,"
    f" by names of at most {MAX_KEY_CHARACTERS} characters"
)
def metadata(value: Any) -> dict[str, str]:
    """Check what a request is to carry; null counts as not given, as Arrow pads columns with it."""
    value = without_nulls(json_object(value), {})
    if len(value) > MAX_PAIRS:
        raise ValueError
    for name, text in value.items():
        if not isinstance(name, str) or len(name) > MAX_KEY_CHARACTERS:
            raise ValueError
        if not isinstance(text, str) or len(text) > MAX_VALUE_CHARACTERS:
            raise ValueError
    return value


def _function_name(value: Any) -> str:
    if json_object(value).keys() != {"type", "function"} or not is_one(value["type"], "function"):
        raise ValueError
    function = json_object(value["function"])
    if function.keys() != {"name"} or not isinstance(function["name"], str):
        raise ValueError
    return function["name"]
