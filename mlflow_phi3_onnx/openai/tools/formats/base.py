"""What a form of tool calls is: how a model that has it is known, its reader and its grammar."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.deltas import Part

__all__ = ["Markings", "ToolCallParser", "ToolFormat"]


@dataclass(frozen=True)
class Markings:
    """What tells of a model how it writes calls.

    Attributes:
        template_shows: Whether the chat template for tools has a text in it.
        control_id: Returns the id of a control token, or None.
    """

    template_shows: Callable[[str], bool]
    control_id: Callable[[str], int | None]

    def terminal(self, mark: str) -> str:
        """Return what stands for a mark in a Lark grammar: its control token, or its text."""
        token = self.control_id(mark)
        return json.dumps(mark, ensure_ascii=False) if token is None else f"<[{token}]>"


class ToolCallParser(Protocol):
    """Separates a completion's text from the tool calls in it, as they are written."""

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        ...

    def add(self, text: str) -> list[Part]:
        """Take the next delta of text and return what can be passed on."""
        ...

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        ...


class ToolFormat(ABC):
    """One way to write tool calls.

    Attributes:
        name: What ``tool_format`` in ``model_config`` calls it.
    """

    name: str

    @abstractmethod
    def matches(self, model: Markings) -> bool:
        """Whether a model writes calls so, by its chat template and its control tokens."""

    @abstractmethod
    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls.

        Args:
            tools: The tools that may be called, in OpenAI's form.
        """

    @abstractmethod
    def grammar(
        self, schemas: Mapping[str, str], model: Markings, *, required: bool, parallel: bool
    ) -> str:
        """Write the grammar, in Lark, of a completion that calls tools.

        Args:
            schemas: The JSON schema of each tool's arguments, by the tool's name.
            model: The model's marks; its control tokens are those that grammars can name.
            required: Whether the completion must be a call; else it may be text.
            parallel: Whether there may be several calls.
        """
