"""Chat templates, rendered as Hugging Face renders them, in a sandbox.

The model's template is a Jinja program that came with the model, so it runs where it can neither
reach anything nor go on for ever (:mod:`~mlflow_phi3_onnx.prompt.template.sandbox`).
"""

from __future__ import annotations

import traceback
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
from jinja2 import nodes

from mlflow_phi3_onnx.core.characters import half_character
from mlflow_phi3_onnx.errors import GenAIError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.prompt.template.metering import OverspentError, budget
from mlflow_phi3_onnx.prompt.template.pricing import RefusalError
from mlflow_phi3_onnx.prompt.template.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ChatTemplate"]

MAX_TEMPLATE_CHARACTERS = 1 << 18

_PROBE = "2750183946"

_GIVEN = {"add_generation_prompt", "messages", "tools"}


class ChatTemplate:
    """A chat template that turns messages into a prompt's text.

    Args:
        source: The Jinja source.
        special_tokens: The names that templates know special tokens by (``bos_token``, ...).
        tool_source: Another source, used where a request has tools.

    Attributes:
        variables: The names that a request may give values for, since the template reads them.
        tools_in_system_message: Whether it looks for tools there, as Phi-4-mini's template does.

    Raises:
        InvalidModelError: If a source is too long or not valid Jinja, or has a lone surrogate.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        tool_source: str | None = None,
    ) -> None:
        self._special_tokens = dict(special_tokens or {})
        self._plain = _Program(source)
        self._for_tools = self._plain if tool_source is None else _Program(tool_source)
        read = self._plain.variables | self._for_tools.variables
        self.variables = read - _GIVEN - self._special_tokens.keys()
        self.tools_in_system_message = self._for_tools.looks_up_tools

    def shows(self, text: str) -> bool:
        """Whether the template, the one for tools where there is one, has a text in it."""
        return text in self._for_tools.source

    @cached_property
    def reads_parts(self) -> bool:
        """Whether it reads contents only as lists of parts, as Idefics3's and LLaVA-Next's do."""

        def shown(content: Any) -> bool:
            try:
                return _PROBE in self.render([{"role": "user", "content": content}])
            except GenAIError:
                return False

        return not shown(_PROBE) and shown([{"type": "text", "text": _PROBE}])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages to the text of a prompt.

        Args:
            messages: The conversation.
            tools: Tool definitions in OpenAI's form. An empty list is as none.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            variables: More values for the template, by name.

        Raises:
            InvalidRequestError: If the template refuses the messages.
            InvalidModelError: If the template fails, or does too much.
        """
        program = self._for_tools if tools else self._plain
        return program.run(
            {
                "documents": None,
                **self._special_tokens,
                **(variables or {}),
                "messages": list(messages),
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt,
            }
        )


class _Program:
    """One compiled template.

    Attributes:
        source: Its Jinja source.
        variables: The names that it reads and does not set itself.
        looks_up_tools: Whether it takes ``tools`` from a value, such as a message, and only there.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidModelError(
                f"The chat template has {len(source):,} characters; at most"
                f" {MAX_TEMPLATE_CHARACTERS:,} are read."
            )
        self.source = source
        environment = Sandbox()
        try:
            with budget():
                tree = environment.parse(source)
                self.variables = jinja2.meta.find_undeclared_variables(tree)
                self.looks_up_tools = "tools" in _keys(tree) - self.variables
                self._texts = _texts(tree)
                self._check_characters(*self._texts)
                self._template: jinja2.Template = environment.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidModelError(
                f"The chat template is not valid Jinja (line {error.lineno}): {error.message}"
            ) from error
        except (RecursionError, SyntaxError, ValueError, OverspentError) as error:
            # Too deep for Jinja or for Python, or a number that is too long.
            raise InvalidModelError("The chat template is too complex to be compiled.") from error

    def run(self, values: Mapping[str, Any]) -> str:
        """Render, or say why not, in words that hold nothing of the values."""
        context = self._template.new_context(dict(values))
        try:
            with budget():
                text = "".join(self._template.root_render_func(context))
        except RefusalError as refusal:
            raise InvalidRequestError(
                f"The model's chat template refuses these messages{self._reason(str(refusal))}",
                param="messages",
            ) from None
        except OverspentError as error:
            raise InvalidModelError(
                "The chat template loops without end, or makes too much of these messages"
                f" ({self._line(error)})."
            ) from None
        except jinja2.exceptions.SecurityError as error:
            raise InvalidModelError(
                f"The chat template does what its sandbox forbids ({self._line(error)})."
            ) from None
        except Exception as error:  # noqa: BLE001 - a template is a program, and may raise anything
            raise InvalidModelError(
                "The chat template fails on these messages"
                f" ({self._line(error)}: {type(error).__name__})."
            ) from None
        self._check_characters(text)
        return text

    def _check_characters(self, *texts: str) -> None:
        for half in filter(None, map(half_character, texts)):
            raise InvalidModelError(
                f"The chat template writes a lone surrogate ({half}), which is half of a character."
            )

    def _reason(self, told: str) -> str:
        """Cut a refusal's reason to what the template says, without a caller's text."""
        own = max((text for text in self._texts if told.startswith(text)), key=len, default="")
        if not own.strip():
            return "."
        return f": {own.strip()}" if own == told else f": {own.strip()} ..."

    def _line(self, error: BaseException) -> str:
        lines = [
            self._template.get_corresponding_lineno(line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == "<template>"
        ]
        return f"line {lines[-1]}" if lines else "at its start"


def _keys(tree: nodes.Template) -> set[str]:
    """Return the constant names that a template looks up in values."""
    named = {node.attr for node in tree.find_all(nodes.Getattr)}
    items = (node.arg for node in tree.find_all(nodes.Getitem))
    return named | {arg.value for arg in items if isinstance(arg, nodes.Const)}


def _texts(tree: nodes.Template) -> set[str]:
    """Return the texts that are written in a template."""
    values = [node.value for node in tree.find_all(nodes.Const)]
    return {
        *(value for value in values if isinstance(value, str)),
        *(node.data for node in tree.find_all(nodes.TemplateData)),
    }
