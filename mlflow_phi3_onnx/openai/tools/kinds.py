"""Which kinds of JSON a schema allows: what a text without quotes is read as, and held to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.schemas import KINDS, kinds_meant
from mlflow_phi3_onnx.grammar.schema_bounds import MAX_DEPTH, reference_target

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALL_KINDS", "kind_of", "kinds_of", "resolved"]

ALL_KINDS = frozenset(KINDS)

_OF_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value."""
    return _OF_TYPES[type(value)]


def resolved(schema: Any, root: Any) -> dict[str, Any]:
    """Follow a schema's references, and an ``allOf`` of one; what is none allows everything."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, dict):
            break
        joined = schema.get("allOf")
        if "$ref" in schema:
            name, inner = "$ref", reference_target(schema["$ref"], root)
        elif isinstance(joined, list) and len(joined) == 1:
            name, inner = "allOf", joined[0]
        else:
            return schema
        beside = {key: value for key, value in schema.items() if key != name}
        schema = {**beside, **inner} if isinstance(inner, dict) else inner
    return {}


def kinds_of(
    schema: Any, root: Any, known: dict[int, frozenset[str]] | None = None
) -> frozenset[str]:
    """Tell the kinds that a schema allows, by what it says of types, constants and branches.

    Args:
        schema: The schema, a part of the root.
        root: The whole that references lead into.
        known: What has been found of parts, by their identity; a part within itself adds nothing.
    """
    known = {} if known is None else known
    if id(schema) in known:
        return known[id(schema)]
    known[id(schema)] = frozenset()
    told = resolved(schema, root)
    kinds = ALL_KINDS
    if "const" in told or isinstance(told.get("enum"), list):
        values = [told["const"]] if "const" in told else told["enum"]
        kinds &= {_OF_TYPES.get(type(value), "") for value in values}
    if isinstance(named := told.get("type"), str | list):
        kinds &= _with_integers(kinds_meant(named))
    for name in ("anyOf", "oneOf"):
        if isinstance(branches := told.get(name), list):
            kinds &= frozenset().union(*(kinds_of(one, root, known) for one in branches))
    known[id(schema)] = kinds
    return kinds


def _with_integers(named: Iterable[Any]) -> frozenset[str]:
    kinds = frozenset(name for name in named if isinstance(name, str))
    return kinds | {"integer"} if "number" in kinds else kinds
