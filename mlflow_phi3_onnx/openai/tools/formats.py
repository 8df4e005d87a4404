"""How families of models write tool calls, and which of these forms a model has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMATS", "SETTINGS", "Markings", "ToolFormat", "choose_format"]


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
        return json.dumps(mark) if token is None else f"<[{token}]>"


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One way to write tool calls, as JSON objects with a name and arguments.

    A model has the format if the mark is one of its control tokens or in its chat template.

    Attributes:
        name: What ``tool_format`` in ``model_config`` calls it.
        begin: The mark before calls. Its first character stands in it only there, and in ``end``
            too, so a mark that breaks off holds no beginning of another.
        end: The mark after them.
        one: A completion of nothing but one call, in Lark: ``call`` stands for the object, and
            ``{begin}`` and ``{end}`` for the marks.
        several: The same of one call or more.
        key: What a call's arguments are called.
        bare: Whether a call may also be the whole completion, without a mark.
        shown: What the template may show instead of the mark.
        others: What the template of a model with the same mark and another format shows.
    """

    name: str
    begin: str
    end: str
    one: str
    several: str
    key: str = "arguments"
    bare: bool = False
    shown: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def matches(self, model: Markings) -> bool:
        """Whether a model writes calls so, by its chat template and its control tokens."""
        shown = any(map(model.template_shows, (self.begin, *self.shown)))
        known = shown or model.control_id(self.begin) is not None
        return known and not any(map(model.template_shows, self.others))


_FORMATS = (
    # Phi-4-mini's, and the demo model's: a list of calls between two marks.
    ToolFormat(
        name="phi4_mini",
        begin="<|tool_call|>",
        end="<|/tool_call|>",
        one='{begin} "[" call "]" {end}',
        several='{begin} "[" call (", " call)* "]" {end}',
    ),
    # Hermes' and Qwen's: each call between marks of its own. Some models write the marks as plain
    # text. Qwen3-Coder and GLM write something else than JSON between the same marks.
    ToolFormat(
        name="hermes",
        begin="<tool_call>",
        end="</tool_call>",
        one=r'{begin} "\n" call "\n" {end}',
        several=r'{begin} "\n" call "\n" {end} ("\n" {begin} "\n" call "\n" {end})*',
        others=("<function=", "<arg_key>"),
    ),
    # Llama 3's: one call as the whole completion. It may stand after the mark; only then may text
    # come before it. The template has a role for what tools return.
    ToolFormat(
        name="llama3",
        begin="<|python_tag|>",
        end="<|eom_id|>",
        one="call",
        several="call",
        key="parameters",
        bare=True,
        shown=("ipython",),
    ),
)

FORMATS = {known.name: known for known in _FORMATS}
"""The formats by name, in the order in which a model is asked for them."""

SETTINGS = ("auto", "none", *FORMATS)
"""What ``tool_format`` in ``model_config`` may be."""


def choose_format(setting: str, model: Markings) -> ToolFormat | None:
    """Choose how a model's tool calls are read and enforced.

    Args:
        setting: One of :data:`SETTINGS`.
        model: The model's marks.

    Returns:
        The format; None where none is wanted, or with ``auto`` where the model's is not known.
    """
    if setting != "auto":
        return FORMATS.get(setting)
    return next((known for known in _FORMATS if known.matches(model)), None)
