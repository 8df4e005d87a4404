"""Every field of a request for a response, once: what it means, and whether it is honoured.

What chat has too is checked as in chat; parameters of chat that OpenAI's Responses API does not
know may stand beside its own fields.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import (
    Check,
    allows,
    boolean,
    describe_kind,
    integer,
    is_one,
    json_object,
    one_of,
    string,
    without_nulls,
)
from mlflow_phi3_onnx.core.options import Option, table
from mlflow_phi3_onnx.core.schemas import OF_SCHEMAS
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.fields import MAX_TOOLS, metadata
from mlflow_phi3_onnx.openai.parameters import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["FIELDS", "GROUPS", "LOGPROBS", "SAME_IN_CHAT", "members"]

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` holds for log-probabilities."""

GROUPS = ("text", "reasoning", "stream_options")
"""The fields that are objects of fields, which stand in the table as ``group.field``."""

_CHAT = PARAMETERS[CHAT]

_OTHER_TOOLS = (
    *("web_search", "web_search_preview", "file_search", "code_interpreter", "image_generation"),
    *("computer", "computer_use_preview", "mcp", "local_shell", "shell", "apply_patch", "custom"),
    *("namespace", "tool_search", "programmatic_tool_calling"),
)

# What asks for nothing, so that it may be given.
_OF_TOOL = {"allowed_callers": ["direct"], "async": False, "defer_loading": False}
_FORMATS = {
    "text": ("type",),
    "json_object": ("type",),
    "json_schema": ("type", "name", "description", "schema", "strict"),
}


def members(
    value: Any,
    where: str,
    known: Collection[str],
    harmless: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Check that a value is an object of known members, and return those that are not null.

    Args:
        value: What came.
        where: The place in the request.
        known: The members that it may have.
        harmless: Other members, each with the one value that asks for nothing.

    Raises:
        InvalidRequestError: If it is no object.
        UnsupportedParameterError: If it has another member.
    """
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"{where} must be an object; got {describe_kind(value)}.", param=where
        )
    given = {name: item for name, item in value.items() if item is not None}
    for name in given.keys() - set(known):
        if name not in harmless or given.pop(name) != harmless[name]:
            raise UnsupportedParameterError(
                f"{where}.{name} is not supported. Leave it out; there are {', '.join(known)}.",
                param=f"{where}.{name}",
            )
    return given


@allows(
    f"a list of at most {MAX_TOOLS} objects with type 'function' and a name, and maybe description,"
    " parameters and strict"
)
def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Check function tools, which are flat here."""
    if not isinstance(value, list | tuple) or len(value) > MAX_TOOLS:
        raise ValueError
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(value))


def _tool(value: Any, where: str) -> dict[str, Any]:
    kind = json_object(value).get("type")
    if is_one(kind, *_OTHER_TOOLS):
        raise UnsupportedParameterError(
            f"{where}.type: tools of type {kind} are not supported; there are only functions, which"
            " the caller runs. Use type 'function', or leave the tool out.",
            param=f"{where}.type",
        )
    known = ("type", "name", "description", "parameters", "strict")
    tool = without_nulls(members(value, where, known, _OF_TOOL), OF_SCHEMAS)
    name = tool.get("name")
    if not is_one(kind, "function") or not isinstance(name, str) or not name:
        raise ValueError
    if not is_one(tool.get("strict"), None, False, True):
        raise ValueError
    return tool


@allows(
    "'none', 'auto', 'required', {'type': 'function', 'name': ...} or {'type': 'allowed_tools',"
    " 'mode': 'auto' or 'required', 'tools': [{'type': 'function', 'name': ...}, ...]}"
)
def _tool_choice(value: Any) -> Any:
    """Check which tools are to be called, and return it in chat's form."""
    if isinstance(value, str):
        form: Any = value
    elif is_one(json_object(value).get("type"), *_OTHER_TOOLS):
        raise UnsupportedParameterError(
            f"tool_choice.type: there are no tools of type {value['type']}, only functions.",
            param="tool_choice.type",
        )
    elif is_one(value.get("type"), "function"):
        form = _named(value)
    elif value.keys() == {"type", "mode", "tools"} and isinstance(value["tools"], list | tuple):
        named = [_named(tool) for tool in value["tools"]]
        allowed = {"mode": value["mode"], "tools": named}
        form = {"type": value["type"], "allowed_tools": allowed}
    else:
        raise ValueError
    _CHAT["tool_choice"].check(form)
    return form


def _named(value: Any) -> dict[str, Any]:
    if json_object(value).keys() != {"type", "name"}:
        raise ValueError
    return {"type": value["type"], "function": {"name": value["name"]}}


@allows("an object with type 'text', 'json_object', or 'json_schema' with name and schema")
def _text_format(value: Any) -> dict[str, Any]:
    """Check the form of the text, which is flat here."""
    kind = json_object(value).get("type")
    if not is_one(kind, *_FORMATS):
        raise ValueError
    form = members(value, "text.format", _FORMATS[kind])
    if kind == "json_schema" and not (
        isinstance(form.get("name"), str)
        and isinstance(form.get("schema"), dict)
        and isinstance(form.get("description"), str | None)
        and is_one(form.get("strict"), None, False, True)
    ):
        raise ValueError
    return form


@allows(f"a list of {LOGPROBS}")
def _include(value: Any) -> tuple[str, ...]:
    """Check what is to be told beside the text."""
    if not isinstance(value, list | tuple):
        raise ValueError
    for i, item in enumerate(value):
        if is_one(item, "reasoning.encrypted_content"):
            raise UnsupportedParameterError(
                f"include[{i}]: reasoning.encrypted_content is not supported; a reasoning item"
                " holds the thought itself, which can be sent back. Leave it out.",
                param=f"include[{i}]",
            )
        if not is_one(item, LOGPROBS):
            raise UnsupportedParameterError(
                f"include[{i}] must be {LOGPROBS}; got {describe_kind(item)}. Others are of tools"
                " that there are none of.",
                param=f"include[{i}]",
            )
    return tuple(value)


SAME_IN_CHAT = (
    *("model", "temperature", "top_p", "parallel_tool_calls"),
    *("top_k", "min_p", "do_sample", "seed", "max_length", "min_tokens", "stop", "stop_token_ids"),
    *("ignore_eos", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("chat_template_kwargs", "regex", "grammar", "choice", "timeout", "prompt_lookup_num_tokens"),
    *("prediction", "adapter"),
)
"""The fields that are chat's, and go there as they are."""

_refused = partial(Option, status="refused")

_ROWS = (
    Option(
        "instructions",
        "A system message before the conversation. It is not kept: a response that goes on from"
        " this one has its own.",
        string,
    ),
    Option(
        "previous_response_id",
        "The response that this one goes on from. Its conversation comes before the input, if it"
        " is still kept; a response that is not is an error of status 404.",
        string,
    ),
    Option(
        "store",
        "Whether the conversation is kept in memory, for previous_response_id. Those that were not"
        " used for longest go first.",
        boolean,
        True,
    ),
    Option("stream", "Whether the response comes as events, while it is written.", boolean, False),
    Option(
        "tools",
        "Functions that the model may call. The arguments of a strict one always match its"
        " parameters; one that does not say strict is not.",
        _tools,
    ),
    replace(_CHAT["tool_choice"], check=_tool_choice),
    Option(
        "text.format",
        "The form of the text: any JSON object, or JSON that matches a schema: as far as it can be"
        " held, and with strict wholly, or it is refused.",
        _text_format,
        otherwise="text",
    ),
    replace(_CHAT["reasoning_effort"], name="reasoning.effort"),
    Option(
        "max_output_tokens",
        "The most tokens of the response, reasoning included. One that needs more is incomplete.",
        integer(1),
    ),
    Option(
        "include",
        f"{LOGPROBS}: the log-probability of each token of the text.",
        _include,
    ),
    replace(
        _CHAT["top_logprobs"],
        about="How many of the most likely tokens to report at each position; needs include.",
    ),
    *(_CHAT[name] for name in SAME_IN_CHAT),
    Option(
        "truncation",
        "A conversation is never cut; one that is too long is an error.",
        Check("'disabled', for nothing is ever cut", one_of("disabled")),
        "disabled",
    ),
    Option("service_tier", "There is one.", one_of("auto", "default"), "default"),
    Option("metadata", "Comes back in the response.", metadata),
    Option("user", "Comes back in the response.", string),
    Option("safety_identifier", "Comes back in the response.", string),
    Option("prompt_cache_key", "Comes back in the response; not needed.", string),
    _refused("background", "Stream the response, or wait for it.", default=False),
    _refused("background_options", "There are no responses in the background."),
    _refused("conversation", "Use previous_response_id."),
    _refused("prompt", "There are no stored prompts; use instructions and input."),
    _refused("max_tool_calls", "It is of tools that a server runs; there are only functions."),
    _refused("context_management", "A conversation is never cut or summed up."),
    _refused("moderation", "There is no moderation."),
    _refused("access_programs", "There are none."),
    _refused("image", "This model reads only text."),
    _refused("prompt_cache_options", "What was computed is kept as model_config says."),
    _refused("prompt_cache_retention", "What was computed is kept as model_config says."),
    _refused("text.verbosity", "Say it in instructions."),
    _refused("reasoning.summary", "A reasoning item holds the thought itself, and no summary."),
    _refused("reasoning.generate_summary", "A reasoning item holds the thought itself."),
    _refused("reasoning.context", "The chat template tells which thoughts are kept."),
    _refused("reasoning.mode", "Use reasoning.effort."),
    _refused("stream_options.include_obfuscation", "Deltas are not padded.", default=False),
    _refused("stream_options.include_usage", "A response always ends with its usage."),
    _refused("messages", "Use input."),
    _refused("response_format", "Use text.format."),
    _refused("reasoning_effort", "Use reasoning.effort."),
    _refused("max_tokens", "Use max_output_tokens."),
    _refused("max_completion_tokens", "Use max_output_tokens."),
    _refused("logprobs", f"Use include, with {LOGPROBS}."),
    _refused("n", "A response is one; send several requests."),
)

FIELDS: Mapping[str, Option] = table(*_ROWS)
"""The fields by name, in the order of the documentation; ``input`` is none of them."""
