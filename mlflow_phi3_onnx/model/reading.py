"""How one model's completions are read and held to forms, by the formats that it was trained on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.request import ChatPrompt, Grammar
from mlflow_phi3_onnx.openai.reasoning.base import PlainReader
from mlflow_phi3_onnx.openai.reasoning.registry import choose_reasoning
from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.formats.registry import choose_format
from mlflow_phi3_onnx.openai.tools.grammar import tool_call_grammar

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler
    from mlflow_phi3_onnx.openai.parse import ParsedRequest
    from mlflow_phi3_onnx.openai.reasoning.base import Reader, ReasoningFormat, Start
    from mlflow_phi3_onnx.openai.tools.formats.base import ToolFormat
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Reading", "reasoning_format_of", "tool_format_of"]

_logger = logging.getLogger(__name__)

_TAIL = 32
"""How many of a prompt's last tokens show where its completion begins."""


class Reading:
    """A model's forms of reasoning and of tool calls, and what follows of them.

    Args:
        tokenizer: The model's tokenizer.
        tools: How it writes calls, where that is known.
        reasoning: How it thinks aloud, if it does.

    Attributes:
        kept: The control tokens that are read in a completion's text.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tools = tools
        self._reasoning = reasoning
        marks = map(tokenizer.control_id, reasoning.marks if reasoning else ())
        self.kept = frozenset(mark for mark in marks if mark is not None)

    def start(self, prompt: ChatPrompt, ids: NDArray[np.int32]) -> Start:
        """Tell where the completions of a prompt begin."""
        if self._reasoning is None:
            return "closed"
        if prompt.continued:
            return self._reasoning.start_within(prompt.messages[-1]["content"])
        text, _ = self._tokenizer.decode(ids[-_TAIL:].tolist())
        return self._reasoning.start(text)

    def reader(self, prompt: ChatPrompt, start: Start) -> Reader:
        """Make a reader of one completion."""
        calls = self._tools.parser(prompt.tools) if self._tools and prompt.tools else None
        if self._reasoning is None:
            return PlainReader(calls)
        return self._reasoning.reader(start, calls)

    def held(self, request: ParsedRequest, compiler: GrammarCompiler) -> dict[str, Grammar]:
        """Build the grammars of what a request's completions say, one of which must hold.

        Returns:
            ``answer``, that of their text, ``calls``, that of their tool calls, both or neither.

        Raises:
            InvalidRequestError: If a tool's parameters cannot be enforced.
            UnsupportedParameterError: If tool calls cannot.
        """
        answer = request.options.grammar
        held = {} if answer is None else {"answer": answer}
        if request.calls is not None:
            (prompt,) = request.prompts
            assert isinstance(prompt, ChatPrompt)
            assert prompt.tools is not None
            model = self._markings(compiler)
            calls = tool_call_grammar(self._tools, prompt.tools, request.calls, model, answer)
            if calls is not None:
                held["calls"] = calls
        return held

    def framed(
        self, held: Mapping[str, Grammar], start: Start, compiler: GrammarCompiler
    ) -> Grammar:
        """Build the grammar of whole completions, thoughts included."""
        first = next(iter(held.values()))
        if start == "closed" and len(held) == 1:
            return first
        if start == "closed" or self._reasoning is None:
            frame = "start: @answer | @calls"
        else:
            frame = self._reasoning.frame(start, self._markings(compiler), tuple(held))
        return Grammar("lark", frame, first.param, tuple(held.items()))

    def _markings(self, compiler: GrammarCompiler) -> Markings:
        def control_id(text: str) -> int | None:
            token = self._tokenizer.control_id(text)
            return token if token is not None and compiler.is_control(token) else None

        return Markings(self._tokenizer.template_shows, control_id)


def reasoning_format_of(tokenizer: PromptTokenizer, setting: str) -> ReasoningFormat | None:
    """Choose a model's form of reasoning."""
    return choose_reasoning(setting, Markings(tokenizer.template_shows, tokenizer.control_id))


def tool_format_of(tokenizer: PromptTokenizer, setting: str) -> ToolFormat | None:
    """Choose a model's tool format, and say so in the log where its template has one unknown."""
    markings = Markings(tokenizer.template_shows, tokenizer.control_id)
    found = choose_format(setting, markings)
    if found is None and setting == "auto" and tokenizer.template_shows("tools"):
        _logger.warning(
            "The chat template shows tools, but the form in which this model writes calls is not"
            " known: what it writes stays text, and calls cannot be required. Set tool_format in"
            " model_config if you know it."
        )
    return found
