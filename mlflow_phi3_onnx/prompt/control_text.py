"""A caller's texts that would read as control tokens, hidden while a template is rendered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.prompt.finder import sorted_texts_begin

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from mlflow_phi3_onnx.prompt.finder import TextFinder

__all__ = ["Fragments", "Hidden"]

_PRIVATE_USE = range(0xE000, 0xF900)
_MESSAGE_WORDS = ("role", "content", "name", "tool_calls", "tool_call_id", "id", "type", "function")
_FUNCTION_WORDS = ("arguments", "description", "parameters", "strict", "properties", "required")
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null", "items", "enum")
_WORDS = frozenset([*_MESSAGE_WORDS, *_FUNCTION_WORDS, *_TYPES])
"""What templates ask for in OpenAI's objects and in JSON schemas: it stays as it is."""


class Fragments:
    """The parts of control tokens, which a text may become whole with what stands beside it.

    Args:
        tokens: The control tokens' texts.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        self._tokens = frozenset(tokens)
        self._longest = max(map(len, tokens), default=1) - 1
        self._forwards = sorted(tokens)
        self._backwards = sorted(token[::-1] for token in tokens)
        self._first = {token[0] for token in tokens}
        self._last = {token[-1] for token in tokens}
        self._all = "\0".join(tokens)

    def edges(self, text: str) -> tuple[int, int]:
        """Measure the end of a token that a text begins with, and the beginning that it ends with.

        White space around counts too, since templates trim it. A text that is a part of a token is
        all beginning.
        """
        if text in _WORDS:
            return 0, 0
        core = text.strip()
        if len(core) <= self._longest and core in self._all and core not in self._tokens:
            return (len(text), 0) if core else (0, 0)
        head = _longest_of(core[: self._longest], self._backwards, self._last)
        tail = _longest_of(core[-self._longest :][::-1], self._forwards, self._first)
        before = len(text) - len(text.lstrip())
        after = len(text) - len(text.rstrip())
        return head and before + head, tail and after + tail


def _longest_of(text: str, tokens: list[str], first: Collection[str]) -> int:
    """Measure the longest beginning of a text that, backwards, sorted tokens begin with."""
    return next(
        (
            n
            for n in range(len(text), 0, -1)
            if text[n - 1] in first and sorted_texts_begin(tokens, text[:n][::-1])
        ),
        0,
    )


class Hidden:
    """Puts stand-ins in the place of texts, and the texts back.

    The same text always has the same stand-in, so that a template finds a key by its name.

    Args:
        texts: Every text of the conversation, to find a character that none of them uses.
        control: What is hidden.
        in_history: What is hidden instead in an assistant's messages.
        fragments: What is hidden too, where a text begins or ends with it.

    Attributes:
        found: What was hidden, with the numbers of the stand-ins.
    """

    def __init__(
        self,
        texts: Sequence[str],
        control: TextFinder,
        in_history: TextFinder,
        fragments: Fragments | None = None,
    ) -> None:
        self.found: dict[str, int] = {}
        self._control = control
        self._in_history = in_history
        self._fragments = fragments
        hides = fragments or any(map(control.is_in, texts))
        self._mark = _unused_character(texts) if hides else ""

    def replace_in(self, value: Any, role: str = "", *, by_name: bool = False) -> Any:
        """Copy JSON with a numbered stand-in for each text that is hidden.

        Args:
            value: What is copied.
            role: The role of the message that it is, if it is one.
            by_name: Whether the template knows the keys of objects: fragments stay in them.
        """
        if not self._mark:
            return value
        if isinstance(value, str):
            return self._replace(value, role, self._fragments)
        if isinstance(value, dict):
            parts = None if by_name else self._fragments
            return {
                self._replace(key, role, parts): self.replace_in(item, role, by_name=by_name)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.replace_in(item, role, by_name=by_name) for item in value]
        return value

    def restore(self, text: str) -> str:
        """Put the texts back, also where a template has escaped the stand-in's characters.

        Raises:
            InvalidRequestError: If the template has cut a stand-in.
        """
        if not self._mark:
            return text
        mark = f"(?:{self._mark}|{re.escape(_escape_of(self._mark))})"
        texts = list(self.found)
        text = re.sub(rf"{mark}(\d+){mark}", lambda match: texts[int(match.group(1))], text)
        if re.search(mark, text):
            raise InvalidRequestError(
                "messages hold the text of a control token of the model, or a part of one, where"
                " the model's chat template takes texts apart. Remove it.",
                param="messages",
            )
        return text

    def _replace(self, text: str, role: str, fragments: Fragments | None) -> str:
        head, tail = fragments.edges(text) if fragments else (0, 0)
        end = max(head, len(text) - tail)
        finder = self._in_history if role == "assistant" else self._control
        middle = finder.replace(text[head:end], self._hide)
        return self._hide(text[:head]) + middle + self._hide(text[end:])

    def _hide(self, text: str) -> str:
        if not text:
            return ""
        number = self.found.setdefault(text, len(self.found))
        return f"{self._mark}{number}{self._mark}"


def _unused_character(texts: Iterable[str]) -> str:
    """Find a private-use character that no text holds, nor its escape."""
    together = "\0".join(texts)
    used = set(together)
    for character in map(chr, _PRIVATE_USE):
        if character not in used and _escape_of(character) not in together:
            return character
    raise InvalidRequestError(
        "messages hold a control token's text together with every private-use character."
        " Remove one of them.",
        param="messages",
    )


def _escape_of(character: str) -> str:
    """Write a character as JSON and Python's ``repr`` escape it."""
    return f"\\u{ord(character):04x}"
