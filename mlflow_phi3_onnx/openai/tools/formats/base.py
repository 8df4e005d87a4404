"""What a tool format is: how a family of models writes calls, read and enforced."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.deltas import ToolCallOutput
    from mlflow_phi3_onnx.openai.tools.json_reader import JsonReader, Reading

__all__ = ["Markings", "ToolCallRule", "ToolFormat"]


@dataclass(frozen=True)
class ToolCallRule:
    """How a request wants tools to be called.

    Attributes:
        required: Whether the completion must be a call.
        name: The only tool that may be called, or None.
        parallel: Whether there may be several calls.
    """

    required: bool
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True)
class Markings:
    """What tells of a model how it writes calls.

    Attributes:
        template_shows: Whether the chat template for tools has a text in it.
        control_id: Returns the id of a control token, or None.
    """

    template_shows: Callable[[str], bool]
    control_id: Callable[[str], int | None]

    def has(self, mark: str) -> bool:
        """Whether a mark is a control token, or in the template."""
        return self.control_id(mark) is not None or self.template_shows(mark)

    def terminal(self, mark: str) -> str:
        """Return what stands for a mark in a Lark grammar: its control token, or its text."""
        token = self.control_id(mark)
        return json.dumps(mark) if token is None else f"<[{token}]>"


class ToolFormat(ABC):
    """One way to write tool calls. A format has no state and serves every request of a model.

    The formats here write JSON objects and share :mod:`.json_calls`. Others fit as well:

    - Several calls, or a JSON array of them, after one mark (``functools[{...}, {...}]``): as
      ``Phi4Mini``, with no mark at the end.
    - Names before the arguments (``[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{...}``): ``read`` takes
      marks and a name by itself, gives ``output.call`` the model's own id, and lets the output
      follow what ``reader.value`` takes.
    - Parameters between tags (``<function=f><parameter=x>1</parameter>``): ``read`` writes the
      object itself, with ``output.arguments``: a brace, and each key and value once it is whole;
      the function's schema, which it gets, tells text from numbers.
    - Python (``[f(a=1)]``): in the same way, a literal at a time.
    - Channels (harmony's ``<|channel|>commentary to=functions.f <|message|>{...}<|call|>``): the
      text of control tokens comes with the rest, so ``read`` finds the header, drops what is no
      content, and lets the output follow the message's characters up to its closing mark.

    Attributes:
        name: What ``tool_format`` in ``model_config`` calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def matches(self, model: Markings) -> bool:
        """Whether a model writes calls so, by its chat template and its control tokens."""

    @abstractmethod
    def read(
        self,
        reader: JsonReader,
        output: ToolCallOutput,
        functions: Mapping[str, Mapping[str, Any]],
    ) -> Reading[None]:
        """Read one completion, a character at a time, to its end.

        Args:
            reader: Gives the characters, which are in ``reader.held`` until they are passed on.
            output: Gets text and calls.
            functions: The functions that may be called, by name, in OpenAI's form.
        """

    def grammar(
        self, functions: Sequence[Mapping[str, Any]], rule: ToolCallRule, model: Markings
    ) -> str | None:
        """Write the Lark grammar of a completion that calls tools, or may call them.

        Whatever it allows, ``read`` must find the calls in it and no others.

        Args:
            functions: The functions that may be called, at least one.
            rule: What the request wants.
            model: The model's marks; its control tokens are those that grammars can name.

        Returns:
            The grammar, or None where calls of this format cannot be enforced.

        Raises:
            InvalidRequestError: If a function's parameters are no JSON schema of an object, or too
                large.
        """
        del functions, rule, model
        return None
