"""Tool calls that stand after marks in a completion's text: what all such forms have in common.

A stream cannot take back what it has sent, so there is a moment from which a call is one: as a
rule, when the name of a known tool is whole. From there on it is passed on as it is written, and if
it breaks or is cut it is a call all the same, with the arguments that were written. Everything else
is text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.deltas import Part, ToolCallOutput
from mlflow_phi3_onnx.openai.tools.formats.base import ToolFormat
from mlflow_phi3_onnx.openai.tools.literal_reader import LiteralReader
from mlflow_phi3_onnx.openai.tools.schema_rules import ANY, escaped, without

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings
    from mlflow_phi3_onnx.openai.tools.json_reader import Reading

__all__ = ["MarkedFormat", "MarkedParser"]


@dataclass(frozen=True, kw_only=True)
class MarkedFormat(ToolFormat):
    """A form whose calls stand after a mark.

    A model has it if the mark is one of its control tokens or in its chat template.

    Attributes:
        name: What ``tool_format`` in ``model_config`` calls it.
        begin: The mark before calls.
        end: The mark after them, or nothing.
        one: A completion of nothing but one call, in Lark: ``call`` stands for the call, and
            ``{begin}`` and ``{end}`` for the marks.
        several: The same of one call or more.
        bare: The character that calls without a mark begin with, if they may be the completion.
        begins: Other marks that calls are read after, though none are written so on purpose.
        shown: What the template may show instead of the mark.
        needs: What the template must show besides.
        others: What the template of a model with the same mark and another format shows.
    """

    name: str
    begin: str
    end: str
    one: str
    several: str
    bare: str = ""
    begins: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def matches(self, model: Markings) -> bool:
        """Whether a model writes calls so, by its chat template and its control tokens."""
        shown = any(map(model.template_shows, (self.begin, *self.shown)))
        known = shown or model.control_id(self.begin) is not None
        needed = all(map(model.template_shows, self.needs))
        return known and needed and not any(map(model.template_shows, self.others))

    def grammar(
        self, schemas: Mapping[str, str], model: Markings, *, required: bool, parallel: bool
    ) -> str:
        """Write the grammar of a completion that calls tools."""
        marks = {"begin": model.terminal(self.begin), "end": model.terminal(self.end)}
        held = self._held(model, parallel=parallel).format(**marks)
        start = [f"start: {held}"] if required else self._free(held, model)
        return "\n".join([*start, *self._call_rules(schemas, model)])

    def _held(self, model: Markings, *, parallel: bool) -> str:  # noqa: ARG002 - for forms that come in two
        return self.several if parallel else self.one

    @abstractmethod
    def _call_rules(self, schemas: Mapping[str, str], model: Markings) -> list[str]:
        """Write the rule ``call`` and those that it needs.

        Args:
            schemas: The JSON schema of each tool's arguments, by the tool's name.
            model: The model's marks.
        """

    def _free(self, held: str, model: Markings) -> list[str]:
        """Write the rules of a completion that is text, calls, or both if the form has it so."""
        begins = (self.begin, *self.begins)
        texts = [mark for mark in begins if model.control_id(mark) is None]
        if self.bare:
            text = rf"TEXT: /\s*([^\s\{self.bare}]{ANY})?/{without(*texts)}"
            return [f"start: TEXT | {held}", text]
        text = f"TEXT: /{ANY}/{without(*texts)}"
        if self.begin not in texts:
            return [f"start: TEXT ({held})?", text]
        inside = held.removeprefix(model.terminal(self.begin))
        head = f"head[lazy]: /{ANY}{escaped(self.begin)}/{without(*self.begins)}"
        return [f"start: TEXT | head{inside}", text, head]


class MarkedParser(ABC):
    """Separates a completion's text from the tool calls in it, as they are written.

    Nothing is held back but what may yet become, or close, a call. What comes of a completion does
    not depend on how it was cut into deltas, for it is read a character at a time.

    Args:
        tools: The tools that may be called, in OpenAI's form.
        begins: The marks before calls. Their first character, the same, stands in them only there,
            and in ``end`` too, so a mark that breaks off holds no beginning of another.
        end: The mark after calls, or nothing.
        bare: The character that calls without a mark begin with, if the completion may begin so.
    """

    def __init__(
        self, tools: Sequence[Mapping[str, Any]], begins: tuple[str, ...], end: str, bare: str = ""
    ) -> None:
        self._begins = begins
        self._end = end
        self._bare = bare
        self._names = {tool["function"]["name"] for tool in tools}
        self._reader = LiteralReader()
        self._held = self._reader.held
        self._output = ToolCallOutput()
        self._ended = False
        self._steps = self._read()

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self._output.calls

    def add(self, text: str) -> list[Part]:
        """Take the next delta of text and return what can be passed on."""
        for char in text:
            self._reader.put(char)
            next(self._steps)
        return self._output.passed()

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        self._reader.put("")
        next(self._steps, None)
        return self._output.passed()

    @abstractmethod
    def _block(self, mark: str) -> Reading[bool]:
        """Read the calls after a mark, or without one; return whether there are any.

        It says in ``_ended`` whether it has taken the mark after them too.
        """

    def _read(self) -> Reading[None]:
        """Read the completion to its end."""
        fresh = True
        if self._bare and (yield from self._reader.spaces()) == self._bare:
            fresh = yield from self._block("")
        closing = ""
        while mark := (yield from self._until_mark(closing, fresh)):
            if mark in self._begins:
                self._ended = False
                fresh = yield from self._block(mark)
                closing = "" if self._ended else self._end if fresh else closing
            else:
                self._held.clear()
                closing = ""
                fresh = True

    def _until_mark(self, closing: str, fresh: bool) -> Reading[str]:
        """Pass text on until a mark, which is held; return it, or nothing at the end.

        Args:
            closing: The mark that closes the calls before, if it is still to come.
            fresh: Whether the completion begins here, or a call has ended. White space is then no
                text yet: before the next call, or the end, it is dropped.
        """
        first = self._begins[0][0]
        if fresh and not (yield from self._reader.spaces()) and self._output.calls:
            self._held.clear()
        while char := (yield from self._reader.peek()):
            if char != first:
                self._reader.take()
            elif mark := (yield from self._reader.mark(*self._begins, closing)):
                return mark
            elif fresh and not (yield from self._reader.peek()) and self._holds_start_of(closing):
                self._held.clear()
            fresh = False
            self._output.text(self._held)
        self._output.text(self._held)
        return ""

    def _holds_start_of(self, mark: str) -> bool:
        return mark.startswith("".join(self._held).strip())

    def _leave(self, *, whole: bool, closing: str) -> Reading[None]:
        """Drop the rest of a whole call; take that of a broken one for its arguments.

        Args:
            whole: Whether the call's arguments are whole.
            closing: The mark that closes it, or nothing.
        """
        if whole or not (yield from self._reader.peek()):
            self._held.clear()
            return
        self._output.follow(self._held)
        while char := (yield from self._reader.peek()):
            if char != closing[:1]:
                self._reader.take()
                continue
            self._output.unfollow()
            if (yield from self._reader.mark(closing)) or not (yield from self._reader.peek()):
                self._held.clear()
                return
            self._output.follow(self._held)
        self._output.unfollow()
