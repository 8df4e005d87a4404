"""Parameters that hold a completion to a form: checks that turn each into a grammar."""

from __future__ import annotations

import json
import re
from typing import Any

from mlflow_phi3_onnx.core.checks import allows, describe_kind, is_one, json_object
from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.grammar.schema_bounds import schema_text

__all__ = ["FORMS", "choice", "lark", "regex", "response_format"]

FORMS = ("response_format", "regex", "grammar", "choice")
"""The parameters that hold a completion to a form; a request may have one of them."""

MAX_REGEX_CHARACTERS = 1 << 13
MAX_LARK_CHARACTERS = 1 << 15
MAX_CHOICES = 1000
MAX_CHOICE_CHARACTERS = 1 << 15

_TEMPERATURE = re.compile(r"^[^\S\n]*[?!\w-]+\[[^\]\n]*temperature", re.MULTILINE)
_JSON_BLOCK = re.compile(r"%json\b\s*")


@allows("an object with type 'text', 'json_object' or 'json_schema'")
def response_format(value: Any) -> Grammar | None:
    """Check a response format: ``text``, ``json_object`` or ``json_schema``."""
    kind = json_object(value).get("type")
    if not is_one(kind, "text", "json_object", "json_schema"):
        raise ValueError
    if value.keys() - ({"type", "json_schema"} if kind == "json_schema" else {"type"}):
        raise ValueError
    if kind == "text":
        return None
    schema: Any = {"type": "object"}
    strict = True
    if kind == "json_schema":
        named = _named_schema(value.get("json_schema"))
        schema, strict = named["schema"], named.get("strict") is True
    text = schema_text(schema, "response_format", strict=strict)
    return Grammar("json_schema", text, "response_format")


def _named_schema(value: Any) -> Any:
    known = {"name", "description", "schema", "strict"}
    schema = value.get("schema", {}) if isinstance(value, dict) else {}
    if not isinstance(schema, dict):
        raise InvalidRequestError(
            "response_format.json_schema.schema must be a JSON schema, an object; got"
            f" {describe_kind(schema)}.",
            param="response_format",
        )
    if (
        not isinstance(value, dict)
        or value.keys() - known
        or "schema" not in value
        or not isinstance(value.get("name"), str | None)
        or not isinstance(value.get("description"), str | None)
        or not is_one(value.get("strict"), None, False, True)
    ):
        raise InvalidRequestError(
            "response_format.json_schema must be an object with a schema, and maybe name,"
            f" description and strict; got {describe_kind(value)}.",
            param="response_format",
        )
    return value


@allows(f"a string of 1 to {MAX_REGEX_CHARACTERS:,} characters", type="string")
def regex(value: Any) -> Grammar:
    """Check a regular expression, which the whole completion is to match."""
    return Grammar("regex", _text(value, MAX_REGEX_CHARACTERS), "regex")


@allows(f"a string of 1 to {MAX_LARK_CHARACTERS:,} characters", type="string")
def lark(value: Any) -> Grammar:
    """Check a Lark grammar. Its JSON schemas are bounded as those of a response format."""
    text = _text(value, MAX_LARK_CHARACTERS)
    if _TEMPERATURE.search(text):
        raise InvalidRequestError(
            "grammar: a rule's temperature is not supported; give the whole completion's.",
            param="grammar",
        )
    parts: list[str] = []
    start = 0
    while match := _JSON_BLOCK.search(text, start):
        try:
            schema, end = json.JSONDecoder().raw_decode(text, match.end())
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                "grammar: %json must be followed by a JSON schema.", param="grammar"
            ) from error
        parts += [text[start : match.start()], "%json ", schema_text(schema, "grammar")]
        start = end
    return Grammar("lark", "".join([*parts, text[start:]]), "grammar")


@allows(
    f"a list of 1 to {MAX_CHOICES:,} strings, of {MAX_CHOICE_CHARACTERS:,} characters together",
    type="array",
    items={"type": "string"},
)
def choice(value: Any) -> Grammar:
    """Check the texts that a completion may be one of."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_CHOICES:
        raise ValueError
    texts = [_text(item, MAX_CHOICE_CHARACTERS) for item in value]
    if sum(map(len, texts)) > MAX_CHOICE_CHARACTERS:
        raise ValueError
    # An upper-case name makes one token of the grammar's, which is matched as a whole.
    return Grammar("lark", f"start: CHOICE\nCHOICE: {' | '.join(map(json.dumps, texts))}", "choice")


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise ValueError
    value.encode()  # raises an error that is a ValueError
    return value
