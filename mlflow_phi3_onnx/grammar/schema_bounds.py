"""JSON schemas of a caller's, written out within bounds.

llguidance bounds most of what a schema may cost to compile, but not all. What it does not bound
was measured: strings that must match many expressions at once (43 s for 20), the pairs of
``patternProperties`` (9 s for 300), and ``multipleOf`` (10 s for 1,000,003).
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind, without_nulls
from mlflow_phi3_onnx.core.schemas import OF_SCHEMAS
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.grammar.keywords import Keywords

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FORM", "LENIENT", "MAX_DEPTH", "reference_target", "schema_text"]

MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 64
MAX_EXPRESSIONS = 10
"""The most expressions and lengths that one string may have to match together."""

MAX_PATTERN_PROPERTIES = 16
MAX_MULTIPLE = 20_000
MAX_REFERENCES = 100
"""The most references that may lead from one to the next."""

# One space may follow a comma and a colon, as models write it. More would let a model that has
# nothing to say go on with white space for ever.
FORM = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


# What cannot be held is left out, as JSON Schema and OpenAI have it without strict.
LENIENT = {**FORM, "lenient": True, "coerce_one_of": True}


def schema_text(schema: Any, param: str, *, strict: bool = True) -> str:
    """Check a JSON schema's size and write it out, with the form that its JSON is to have.

    A keyword that is null is as one that is not there.

    Args:
        schema: The schema, an object.
        param: The request's field that holds it, for messages.
        strict: Whether a keyword that cannot be held is refused, when the schema is compiled; else
            all others are held.

    Raises:
        InvalidRequestError: If it is not a JSON object, or too large, or a keyword cannot be held.
    """
    if not isinstance(schema, dict):
        raise InvalidRequestError(
            f"{param} must hold a JSON schema, an object; got {describe_kind(schema)}.", param=param
        )
    if _is_deep(schema):
        raise _too_large(param, f"is nested more than {MAX_DEPTH} levels deep")
    if "x-guidance" in schema:
        raise InvalidRequestError(f"{param}: x-guidance is not supported.", param=param)
    form = FORM if strict else LENIENT
    try:
        schema = without_nulls(schema, OF_SCHEMAS)
        text = json.dumps({"x-guidance": form, **schema}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"{param} holds a schema that is not valid JSON.", param=param
        ) from error
    if len(text) > MAX_CHARACTERS:
        raise _too_large(param, f"has more than {MAX_CHARACTERS:,} characters")
    schema = Keywords(param, strict=strict).held(schema)
    try:
        costly = _costly_part(schema)
    except RecursionError:
        costly = "has references that lead through too many levels"
    if costly:
        raise _too_large(param, costly)
    return json.dumps({"x-guidance": form, **schema})


def _too_large(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: the schema {why}.", param=param)


def _is_deep(schema: Any) -> bool:
    """Whether a JSON-like value has too many levels, told without recursion."""
    level = [schema]
    for _ in range(MAX_DEPTH):
        items = [item for value in level for item in _items(value)]
        level = [item for item in items if isinstance(item, dict | list | tuple)]
    return bool(level)


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in _items(value):
        yield from _objects(item)


def _costly_part(schema: dict[str, Any]) -> str:
    """Say what a schema has too much of; nothing if it may be compiled."""
    patterns = 0
    multiples: set[Fraction] = set()
    for part in _objects(schema):
        if isinstance(named := part.get("patternProperties"), dict):
            patterns += len(named)
        multiple = part.get("multipleOf")
        if isinstance(multiple, int | float) and not isinstance(multiple, bool) and multiple:
            multiples.add(abs(Fraction(str(multiple))))
    if patterns > MAX_PATTERN_PROPERTIES:
        return f"has more than {MAX_PATTERN_PROPERTIES} patternProperties"
    scale = max((value.denominator for value in multiples), default=1)
    whole = [math.ceil(value * scale) for value in multiples]
    if len(whole) > MAX_PATTERN_PROPERTIES or math.lcm(1, *whole) > MAX_MULTIPLE:
        return f"has values of multipleOf whose common multiple is above {MAX_MULTIPLE:,}"
    if _most_expressions(schema) > MAX_EXPRESSIONS:
        return f"makes one string match more than {MAX_EXPRESSIONS} expressions at once"
    return ""


def _most_expressions(root: dict[str, Any]) -> int:
    """Count how many expressions one string may have to match, at most.

    Schemas that are joined (``allOf``, and whatever stands beside ``anyOf``, ``oneOf`` and
    ``$ref``) may all speak of the same string.
    """
    counts: dict[int, int] = {}

    def count(schema: Any, references: int) -> int:
        if not isinstance(schema, dict):
            return max((count(item, references) for item in _items(schema)), default=0)
        key = id(schema)
        if key not in counts:
            counts[key] = 0  # a schema that leads back to itself
            counts[key] = count_object(schema, references)
        return counts[key]

    def count_object(schema: dict[str, Any], references: int) -> int:
        lengths = "minLength" in schema or "maxLength" in schema
        own = ("pattern" in schema) + ("format" in schema) + lengths
        joined = 0
        inner = 0
        apart = 0
        for name, value in schema.items():
            if name == "allOf":
                joined += sum(count(item, references) for item in _items(value))
            elif name in ("anyOf", "oneOf"):
                joined += count(value, references)
            elif name in ("$defs", "definitions"):  # of no string, unless they are referred to
                apart = max(apart, count(value, references))
            elif name != "$ref":
                inner = max(inner, count(value, references))
            elif references < MAX_REFERENCES:
                joined += count(reference_target(value, root), references + 1)
            else:
                joined += MAX_EXPRESSIONS + 1
        return max(max(own, inner) + joined, apart)

    return count(root, 0)


def reference_target(pointer: Any, root: Any) -> Any:
    """Return what a reference within the schema leads to; None if it leads to nothing."""
    if not isinstance(pointer, str) or not pointer.startswith("#"):
        return None
    target = root
    for name in pointer[1:].split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict):
            target = target.get(name)
        elif isinstance(target, list | tuple) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        else:
            return None
    return target
