"""Schemas of arguments as rules of Lark, for models that write something else than JSON.

What JSON is written inside is left to llguidance. Of the rest, what a schema says is held, or it is
refused; what only tells about a value (``format``, ``default``) is not held.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.grammar.schema_bounds import FORM, LENIENT
from mlflow_phi3_onnx.openai.tools.kinds import kinds_of, resolved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ANY", "SchemaRules", "constants", "escaped", "quoted", "without"]

ANY = "(?s:.*)"

# A class that is not closed ends with the text: a search from each of its characters takes longer.
_ESCAPE_OR_CLASS = re.compile(r"(?s)\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\\?\Z)")

_TELLING = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions", "format", "x-guidance", "nullable"),
}
_CHOICES = {"type", "enum", "const", "anyOf", "oneOf"}
_OBJECT = {"properties", "required", "additionalProperties", "patternProperties"}
_ARRAY = {"items", "minItems", "maxItems"}
_STRING = {"pattern", "minLength", "maxLength"}
_NUMBER = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_KNOWN = _TELLING | _CHOICES | _OBJECT | _ARRAY | _STRING | _NUMBER


class SchemaRules(ABC):
    """Writes rules for the arguments of several tools.

    Attributes:
        between: What stands between two members, in Lark, or nothing.
    """

    between = ""

    def __init__(self) -> None:
        self._rules: dict[str, list[str]] = {}
        self._of_schema: dict[int, tuple[str, Any]] = {}  # by identity, so they are kept
        self._root: dict[str, Any] = {}
        self._lenient = False

    @abstractmethod
    def member(self, key: str | None, schema: Any) -> str:
        """Write one argument, in Lark; without a key, that of any name."""

    def add(self, rule: str, alternative: str) -> None:
        """Add an alternative to a rule."""
        self._rules.setdefault(rule, []).append(alternative)

    def lines(self) -> list[str]:
        """Return the rules that were made."""
        return [f"{name}: {' | '.join(ways)}" for name, ways in self._rules.items()]

    def arguments(self, schema: dict[str, Any]) -> str:
        """Make rules for a tool's arguments; return what stands for them."""
        self._root = schema
        self._lenient = schema.get("x-guidance") == LENIENT
        try:
            return self.members(resolved(schema, schema))
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                "tools: a function's parameters are no valid JSON schema, or too deep.",
                param="tools",
            ) from error

    def members(self, schema: Mapping[str, Any]) -> str:
        """Make rules for the members of an object, in their order; return what stands for them."""
        self._check(schema, _OBJECT | {"type"})
        properties = schema.get("properties")
        required = schema.get("required") or []
        if properties is None and not required:
            return self._any_members(schema.get("additionalProperties", True))
        named = {**(properties or {}), **{k: {} for k in required if k not in (properties or {})}}
        members = [
            (self.member(key, value), key in required)
            for key, value in named.items()
            if value is not False
        ]
        if not self.between:
            return " ".join(one if needed else f"({one})?" for one, needed in members) or '""'
        # From the last to the first: what may follow a member, and what may if it is the first.
        first = rest = '""'
        for written, needed in reversed(members):
            one = self._new(written)
            after = [f"{self.between} {one} {rest}", *([] if needed else [rest])]
            first = self._new(f"{one} {rest}", *([] if needed else [first]))
            rest = self._new(*after)
        return first

    def _any_members(self, schema: Any) -> str:
        if schema is False:
            return '""'
        one = self.member(None, schema)
        self._rules.setdefault("NAME", ["/[a-zA-Z_][a-zA-Z0-9_]{0,63}/"])
        return f"({one} ({self.between} {one})*)?" if self.between else f"({one})*"

    def kinds(self, schema: Any) -> frozenset[str]:
        """Tell the kinds of JSON that a schema allows."""
        return kinds_of(schema, self._root)

    def json(self, schema: Any) -> str:
        """Write a value as JSON has it."""
        form = LENIENT if self._lenient else FORM
        whole: dict[str, Any] = {"x-guidance": form, **_moved(resolved(schema, self._root))}
        if '"$ref"' in json.dumps(whole):
            led = set(re.findall(r'"\$ref": "#/?([^/"]*)', json.dumps(self._root)))
            root = {k: v for k, v in self._root.items() if k in led or "" in led}
            whole["$defs"] = {"root": _moved(root)}
        return f"%json {json.dumps(whole)}"

    def texts(self, schema: Any, seen: set[int] | None = None) -> list[dict[str, Any]]:
        """Return the branches of a schema that allow texts, each once."""
        seen = set() if seen is None else seen
        if id(schema) in seen:
            return []
        seen.add(id(schema))
        schema = resolved(schema, self._root)
        branches = schema.get("anyOf") or schema.get("oneOf")
        if not branches:
            return [schema] if "string" in self.kinds(schema) else []
        self._check(schema, _CHOICES)
        return [text for branch in branches for text in self.texts(branch, seen)]

    def text(self, schema: Mapping[str, Any], end: str, *, marks: Sequence[str] = ()) -> str:
        """Make a terminal for a text and what ends it, unless that is a token of its own.

        Args:
            schema: What is said of the text.
            end: What ends it: a text, or a token's terminal.
            marks: Texts that it must not hold, besides what ends it.
        """
        token = end.startswith("<[")
        closing = "" if token else escaped(end)
        if (listed := constants(schema)) is not None:
            words = [quoted(word + ("" if token else end)) for word in listed if type(word) is str]
            return f"({' | '.join(words)}) {end if token else ''}"
        self._check(schema, _KNOWN - {"enum", "const", "anyOf", "oneOf"})
        fewest, most = schema.get("minLength", 0), schema.get("maxLength", "")
        parts = [f"/(?s:.{{{fewest},{most}}}){closing}/"]
        if pattern := schema.get("pattern"):
            with suppress(*([UnsupportedParameterError] if self._lenient else [])):
                parts.append(f"/{self._expression(pattern)}{closing}/")
        held = [*marks] if token else [*marks, end]
        if held:
            parts.append(
                f"~/{ANY}({'|'.join(map(escaped, held))}){ANY}{'' if token else '(?s:.)'}/"
            )
        name = f"TEXT{len(self._rules)}" if token else f"text{len(self._rules)}"
        self.add(name if token else f"{name}[lazy]", " & ".join(parts))
        return f"{name} {end}" if token else name

    def nested(self, schema: Any) -> str:
        """Make a rule for a value of any kind, of texts in quotes and unquoted keys."""
        schema = schema or True  # what says nothing, as one object
        if id(schema) not in self._of_schema:
            rule = self._new()
            self._of_schema[id(schema)] = rule, schema
            self._rules[rule] = list(self._ways(resolved(schema, self._root)))
        return self._of_schema[id(schema)][0]

    def string(self, schema: Mapping[str, Any]) -> str:
        """Write a text within other values, in Lark."""
        raise NotImplementedError  # a form that writes no nested values has no such texts

    def check_key(self, key: str, fits: bool) -> None:
        """Refuse an argument's name that cannot be written."""
        if not key or not fits:
            refuse("an argument with such a name")

    def _ways(self, schema: dict[str, Any]) -> Iterable[str]:
        self._check(schema, _KNOWN)
        if (listed := constants(schema)) is not None:
            yield from (self._constant(value) for value in listed)
        elif branches := schema.get("anyOf") or schema.get("oneOf"):
            self._check(schema, _CHOICES)
            yield from (self.nested(branch) for branch in branches)
        else:
            kinds = self.kinds(schema)
            for kind in sorted(kinds - {"integer"} if "number" in kinds else kinds):
                if kind == "string":
                    yield self.string(schema)
                elif kind == "array":
                    yield self._array(schema)
                elif kind == "object":
                    members = self.members({k: schema[k] for k in _OBJECT & schema.keys()})
                    yield f'"{{" {members} "}}"'
                else:
                    bounds = {k: schema[k] for k in _NUMBER & schema.keys()}
                    yield self.json({"type": kind, **bounds})

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self.nested(schema.get("items"))
        fewest, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        more = f"{{{max(fewest - 1, 0)},{'' if most is None else most - 1}}}"
        listed = f"{item} ({self.between} {item}){more}"
        return f'"[" {listed} "]"' if fewest else f'"[" ({listed})? "]"'

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return self.string({"const": value})
        if isinstance(value, list | dict) and value:
            refuse("a constant that is a list or an object")
        return quoted(json.dumps(value))

    def _expression(self, pattern: Any) -> str:
        """Write a JSON schema's expression, which may match anywhere, as one of a whole text."""
        replaced = {"/": r"\/", "\n": r"\n"}
        body = re.sub(r"\\.|/|\n", lambda m: replaced.get(m[0], m[0]), str(pattern))
        before = "" if body.startswith("^") else ANY
        after = "" if re.search(r"(?<!\\)(\\\\)*\$$", body) else ANY
        body = body.removeprefix("^")
        body = body if after else body[:-1]
        if (before == "" or after == "") and _has_branches(body):
            refuse("a pattern with branches beside ^ or $")
        if re.search(r"(?<!\\)(\\\\)*\\$", body):
            refuse("a pattern that ends in a backslash")
        return f"{before}({body}){after}"

    def _new(self, *ways: str) -> str:
        rule = f"rule{len(self._rules)}"
        self._rules[rule] = list(ways)
        return rule

    def _check(self, schema: Mapping[str, Any], known: Iterable[str]) -> None:
        unknown = sorted(schema.keys() - {*known} - _TELLING)
        if unknown and not self._lenient:
            refuse(unknown[0])


def constants(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values that a schema lists, or None if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def quoted(text: str) -> str:
    """Write a text as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """Write a text as a part of a regular expression of Lark."""
    return re.sub(r"([^\w\s<>=\"',:;])", r"\\\1", text).replace("\n", r"\n")


def without(*texts: str) -> str:
    """Say of a terminal, in Lark, that it holds none of some texts."""
    return f" & ~/{ANY}({'|'.join(map(escaped, texts))}){ANY}/" if texts else ""


def refuse(what: str) -> NoReturn:
    """Refuse what cannot be held.

    Raises:
        UnsupportedParameterError: Always.
    """
    raise UnsupportedParameterError(
        f"tools: {what} cannot be enforced in the form in which this model writes calls. Leave it"
        " out, or leave the model free: tool_choice 'auto', without strict.",
        param="tools",
    )


def _has_branches(expression: str) -> bool:
    """Whether an expression has a | outside of groups and classes."""
    depth = 0
    for char in _ESCAPE_OR_CLASS.sub("", expression):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth <= 0:
            return True
    return False


def _moved(schema: Any) -> Any:
    """Copy a part of a schema whose references lead into the whole, put beside it."""
    if isinstance(schema, list):
        return [_moved(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value) for key, value in schema.items()}
    if isinstance(target := schema.get("$ref"), str) and target.startswith("#"):
        moved["$ref"] = f"#/$defs/root{target[1:]}"
    return moved
