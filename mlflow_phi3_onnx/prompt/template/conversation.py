"""A conversation on its way through a chat template.

It becomes plain JSON, in the form that Hugging Face's templates read. What the template has left
out of it is found afterwards.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.characters import half_character
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import (
    GenAIError,
    InvalidModelError,
    InvalidRequestError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlflow_phi3_onnx.core.request import ChatPrompt
    from mlflow_phi3_onnx.prompt.control_text import Hidden
    from mlflow_phi3_onnx.prompt.template.chat_template import ChatTemplate

__all__ = ["Conversation", "check_text"]

MAX_DEPTH = 64
"""How deeply messages and tools may be nested."""

_PROBE = "7301986452"
_MOST_SEARCHES = 64
"""How many contents are looked for in the whole of a text: each takes as long as it is long."""

_SHORT_IDS = "[TOOL_CALLS]"
"""What a template shows that takes only ids of nine letters and digits."""

SHORT_ID = 9

_NO_PARAMETERS = {"type": "object", "properties": {}}

# What a message that is to be continued ends with while it is rendered: templates trim texts.
_BREAK = "\ue000break\ue000"

_REASONING = ("reasoning_content", "thinking", "reasoning")


class Conversation:
    """A conversation as plain JSON.

    Args:
        chat: What a caller gave.

    Attributes:
        texts: Every text of it, keys included.
        chosen: The same without the roles, which are those of a list.

    Raises:
        InvalidRequestError: If it is not JSON, nested too deeply, or holds a lone surrogate.
    """

    def __init__(self, chat: ChatPrompt) -> None:
        given = _plain(list(chat.messages), "messages")
        self._continued = chat.continued
        if chat.continued:
            given[-1]["content"] += _BREAK
        self._forms = [given]
        readable = [_readable(message) for message in given]
        for form in ([_with_one_text(message) for message in readable], readable):
            if form != self._forms[0]:
                self._forms.insert(0, _plain(form, "messages"))
        self._tools = _plain(chat.tools, "tools")
        self._variables = _plain(dict(chat.template_kwargs), "chat_template_kwargs")
        effort = chat.reasoning_effort
        self._effort = {} if effort is None else {"reasoning_effort": effort}
        messages = [{**message, "role": ""} for form in self._forms for message in form]
        self.chosen = list(_strings([messages, self._tools, self._variables]))
        self.texts = [*self.chosen, *(message["role"] for message in given)]

    def render(self, template: ChatTemplate, hidden: Hidden, add_generation_prompt: bool) -> str:
        """Render the conversation.

        Args:
            template: The model's chat template.
            hidden: Hides what is to be hidden.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.

        Raises:
            InvalidRequestError: If the template refuses the messages, or leaves out a part of them.
            UnsupportedParameterError: If it does not read the variables, or leaves out the tools.
        """
        _check_variables(self._variables, template, "chat_template_kwargs.")
        _check_variables(self._effort, template)
        forms = self._forms
        if template.shows(_SHORT_IDS):
            forms = [[_with_short_ids(message) for message in form] for form in forms]
        try:
            return self._render(template, hidden, add_generation_prompt, forms, self._tools)
        except InvalidModelError:
            whole = [_with_all_keys(tool) for tool in self._tools or ()]
            if whole == (self._tools or []):
                raise
            return self._render(template, hidden, add_generation_prompt, forms, whole)

    def _render(
        self,
        template: ChatTemplate,
        hidden: Hidden,
        add_generation_prompt: bool,
        forms: Sequence[list[dict[str, Any]]],
        tools: list[dict[str, Any]] | None,
    ) -> str:
        shown = hidden.replace_in(tools) or []
        variables = {**hidden.replace_in(self._variables, by_name=True), **self._effort}

        def fill(messages: list[dict[str, Any]]) -> str:
            in_message = shown and template.tools_in_system_message
            told = _with_tools(messages, shown) if in_message else messages
            return template.render(
                [_in_parts(message) for message in told] if template.reads_parts else told,
                tools=None if in_message else shown,
                add_generation_prompt=add_generation_prompt,
                variables=variables,
            )

        messages, rendered = _fill(forms, hidden, fill)
        _check_shown(messages, rendered, fill)
        if not all(_holds(rendered, tool["function"]["name"]) for tool in shown):
            raise UnsupportedParameterError(
                "The model's chat template leaves out tools: the model was not made to call any.",
                param="tools",
            )
        return self._broken_off(rendered) if self._continued else rendered

    def _broken_off(self, rendered: str) -> str:
        """Cut what a template writes after the message that is to be continued."""
        text, mark, _ = rendered.rpartition(_BREAK)
        if not mark:
            raise UnsupportedParameterError(
                "continue_final_message is not supported: the model's chat template does not write"
                " the last message as it is. Leave it out.",
                param="continue_final_message",
            )
        return text


def _fill(
    forms: Sequence[list[dict[str, Any]]],
    hidden: Hidden,
    fill: Callable[[list[dict[str, Any]]], str],
) -> tuple[list[dict[str, Any]], str]:
    """Hide texts in the messages, and render them in the form that the template reads."""

    def show(form: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**hidden.replace_in(m, m["role"]), "role": m["role"]} for m in form]

    *readable, given = forms
    for form in readable:
        messages = show(form)
        with suppress(InvalidModelError, InvalidRequestError):
            rendered = fill(messages)
            if not _writes_python(messages, rendered):
                return messages, rendered
    # A template that reads the arguments of tool calls as OpenAI has them.
    messages = show(given)
    return messages, fill(messages)


def check_text(text: str, param: str) -> None:
    """Refuse what cannot be written as UTF-8."""
    if half := half_character(text):
        raise InvalidRequestError(
            f"{param} holds a lone surrogate ({half}), which is not a character. Send valid Unicode"
            " text.",
            param=param,
        )


def _plain(value: Any, param: str, depth: int = 0) -> Any:
    """Copy JSON, so that a template gets no other object, whose methods it might call."""
    if isinstance(value, str):
        check_text(value, param)
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if depth == MAX_DEPTH:
        raise InvalidRequestError(
            f"{param} must not be nested more than {MAX_DEPTH} levels deep.", param=param
        )
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_plain(key, param): _plain(item, param, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, param, depth + 1) for item in value]
    raise InvalidRequestError(
        f"{param} must be JSON: texts, numbers, true, false, null, lists, and objects whose keys"
        f" are texts; it holds {describe_kind(value)}.",
        param=param,
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_variables(given: Mapping[str, Any], template: ChatTemplate, where: str = "") -> None:
    for name in given:
        if name not in template.variables:
            known = ", ".join(sorted(template.variables)) or "none"
            advice = "" if where else " Give those in chat_template_kwargs, or leave it out."
            raise UnsupportedParameterError(
                f"{where}{name} is not supported: the model's chat template does not read it. It"
                f" reads: {known}.{advice}",
                param=f"{where}{name}",
            )


def _readable(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in the form that Hugging Face's templates read.

    Their arguments of tool calls are objects, where OpenAI's are JSON in a text; and reasoning has
    several names, which transformers gives it all.
    """
    message = dict(message)
    reasoning = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    calls = message.get("tool_calls")
    if isinstance(calls, list | tuple):
        message["tool_calls"] = [_with_object(call) for call in calls]
    return message


def _with_all_keys(tool: dict[str, Any]) -> dict[str, Any]:
    """Give a tool the keys that OpenAI leaves out and some templates read all the same."""
    given = {key: value for key, value in tool["function"].items() if value is not None}
    return {**tool, "function": {"description": "", "parameters": _NO_PARAMETERS, **given}}


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Shorten the ids of calls, and of their results alike, to what Mistral's templates take."""
    message = dict(message)
    if isinstance(result := message.get("tool_call_id"), str):
        message["tool_call_id"] = _short_id(result)
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [
            {**call, "id": _short_id(call["id"])}
            if isinstance(call, dict) and isinstance(call.get("id"), str)
            else call
            for call in calls
        ]
    return message


def _short_id(text: str) -> str:
    """Return an id of nine letters and digits, always the same one for the same text."""
    if len(text) == SHORT_ID and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT_ID]


def _with_one_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Join what is said before a tool call to the thought, for templates that read one of them.

    gpt-oss's template writes either as a thought, and refuses both together.
    """
    text, thought = message["content"], message.get("thinking")
    if not (text and thought and isinstance(thought, str) and message.get("tool_calls")):
        return message
    return {**message, "content": "", "thinking": f"{thought}\n\n{text}"}


def _writes_python(messages: Sequence[Mapping[str, Any]], rendered: str) -> bool:
    """Whether a template has written a tool call's arguments as Python does, and not as JSON."""
    return any(
        isinstance(arguments, dict) and arguments and repr(arguments) in rendered
        for message in messages
        for call in message.get("tool_calls", ())
        for arguments in [call.get("function", {}).get("arguments")]
    )


def _with_tools(
    messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Put the functions into the system message, for templates that read them there."""
    described = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{**messages[0], "tools": described}, *messages[1:]]


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Give a message's text as the only part of its content."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _check_shown(
    messages: Sequence[Mapping[str, Any]],
    rendered: str,
    fill: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Refuse messages that the template leaves out. An assistant's may be cut on purpose.

    A template may also edit what it shows: so where a content is missing, other contents are tried,
    which it has no reason to edit.
    """
    missing = _missing(messages, rendered)
    if not missing:
        return
    edited = [dict(message) for message in messages]
    for number in missing:
        edited[number]["content"] = f"{_PROBE}{number}."
    try:
        shown = fill(edited)
    except GenAIError:
        return  # it reads what it has been given
    found = set(re.findall(rf"{_PROBE}(\d+)\.", shown))
    for number in missing:
        if str(number) not in found:
            raise InvalidRequestError(
                f"The model's chat template leaves out messages[{number}]: it does not know the"
                f" role {messages[number]['role']}, or not in this place.",
                param=f"messages[{number}].role",
            )


def _missing(messages: Sequence[Mapping[str, Any]], rendered: str) -> list[int]:
    """Number the messages whose content does not seem to be shown; an assistant's may be cut.

    Each content is looked for behind the one before it, so that the text is read once. From some
    searches in vain on, every message counts as missing.
    """
    missing: list[int] = []
    place = searches = 0
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        if searches < _MOST_SEARCHES:
            content = message["content"].strip()
            at = rendered.find(content, place)
            if at >= 0:
                place = at + len(content)
                continue
            searches += 1
            if _holds(rendered, content):
                continue
        missing.append(number)
    return missing


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    text = function.get("arguments") if isinstance(function, dict) else None
    if function is None or not isinstance(text, str):
        return call
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):  # not JSON, or half a surrogate pair, written as an escape
        return call
    return {**call, "function": {**function, "arguments": value if type(value) is dict else text}}


def _holds(rendered: str, text: str) -> bool:
    return text in rendered or any(
        json.dumps(text, ensure_ascii=ascii_only)[1:-1] in rendered for ascii_only in (False, True)
    )
