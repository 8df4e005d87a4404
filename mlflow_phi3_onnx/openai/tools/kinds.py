"""Which kinds of JSON a schema allows: what a text without quotes is read as, and held to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.grammar.schema_bounds import MAX_DEPTH, reference_target

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALL_KINDS", "kind_of", "kinds_of", "resolved"]

ALL_KINDS = frozenset(["string", "integer", "number", "boolean", "null", "array", "object"])

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
        if "$ref" in schema:
            schema = reference_target(schema["$ref"], root)
        elif isinstance(joined := schema.get("allOf"), list) and len(joined) == 1:
            schema = {
                **{k: v for k, v in schema.items() if k != "allOf"},
                **resolved(joined[0], root),
            }
        else:
            return schema
    return {}


def kinds_of(schema: Any, root: Any, depth: int = 0) -> frozenset[str]:
    """Tell the kinds that a schema allows, by what it says of types, constants and branches."""
    schema = resolved(schema, root)
    kinds = ALL_KINDS
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        kinds &= {_OF_TYPES.get(type(value), "") for value in values}
    if isinstance(named := schema.get("type"), str | list):
        kinds &= _with_integers([named] if isinstance(named, str) else named)
    for name in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(name), list) and depth < MAX_DEPTH:
            kinds &= frozenset().union(*(kinds_of(one, root, depth + 1) for one in branches))
    return kinds


def _with_integers(named: Iterable[Any]) -> frozenset[str]:
    kinds = frozenset(name for name in named if isinstance(name, str))
    return kinds | {"integer"} if "number" in kinds else kinds
