"""Chat templates, rendered as Hugging Face renders them, in a sandbox.

The model's template is a Jinja program that came with the model, so it runs in Jinja's immutable
sandbox, with a bound on its output and its time.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["ChatTemplate", "load_template"]

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_RENDERED_CHARACTERS = 1 << 24
MAX_SECONDS = 10.0


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's part for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - Jinja reads this plain class attribute

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(functions)
    return environment


class ChatTemplate:
    """A chat template that turns messages into a prompt's text.

    Args:
        source: The Jinja source.
        special_tokens: The names that templates know special tokens by (``bos_token``, ...).
        tool_source: Another source, used where a request has tools.

    Raises:
        InvalidModelError: If a source is too long or not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        tool_source: str | None = None,
    ) -> None:
        environment = _environment()
        self._source = tool_source or source
        self._special_tokens = dict(special_tokens or {})
        self._template = _compile(environment, source)
        self._tool_template = _compile(environment, tool_source) if tool_source else self._template

    def shows(self, text: str) -> bool:
        """Whether the template, the one for tools where there is one, has a text in it."""
        return text in self._source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Render messages to the text of a prompt.

        Args:
            messages: The conversation.
            tools: Tool definitions in OpenAI's form.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.

        Raises:
            InvalidRequestError: If the template refuses the messages.
            InvalidModelError: If the template fails, or runs too long.
        """
        template = self._tool_template if tools else self._template
        deadline = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(
                messages=list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED_CHARACTERS or time.monotonic() > deadline:
                    raise InvalidModelError("The chat template writes without end.")
        except jinja2.exceptions.SecurityError as error:
            raise InvalidModelError("The chat template does what its sandbox forbids.") from error
        except jinja2.exceptions.TemplateRuntimeError as error:
            raise InvalidModelError("The chat template fails on these messages.") from error
        except jinja2.TemplateError as error:
            # raise_exception() in the template: its text is the template's, not the caller's.
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise InvalidModelError("The chat template fails on these messages.") from error
        return "".join(pieces)


def _compile(
    environment: jinja2.sandbox.ImmutableSandboxedEnvironment, source: str
) -> jinja2.Template:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidModelError(
            f"The chat template has {len(source):,} characters; at most"
            f" {MAX_TEMPLATE_CHARACTERS:,} are read."
        )
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidModelError(
            f"The chat template is not valid Jinja (line {error.lineno})."
        ) from error


def load_template(path: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Find a model folder's chat template.

    ``chat_template.jinja`` comes first, then ``chat_template`` of ``tokenizer_config.json``, a
    string or a list of named templates (``default`` and ``tool_use``), as in transformers.

    Args:
        path: The model folder.
        config: Its ``tokenizer_config.json``.

    Returns:
        The template, or None where the folder has none.
    """
    source: Any = config.get("chat_template")
    file = path / "chat_template.jinja"
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    tool_source: str | None = None
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source}
        tool_source = named.get("tool_use")
        source = named.get("default", tool_source)
    if source is None:
        return None
    if not isinstance(source, str):
        raise InvalidModelError("tokenizer_config.json: chat_template must be text.")
    return ChatTemplate(source, _special_tokens(config), tool_source=tool_source)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens
