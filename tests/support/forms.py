"""Forms that answers are held to."""

from __future__ import annotations

from typing import Any

SUM = 'start: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[1-9][0-9]{0,2}/'
SHORT = {"type": "string", "maxLength": 12}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# Each of them can be finished within a few hundred tokens, whatever a model babbles.
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": closed(city=SHORT, population={"type": "integer", "minimum": 0, "maximum": 10**7}),
    "nested": closed(place=closed(name=SHORT, country=closed(code={"enum": ["ES", "FR"]}))),
    "optional": {**closed(a=SHORT, b=SHORT), "required": ["b"]},
    "array": {"type": "array", "items": {"enum": ["x", "y", 3]}, "minItems": 2, "maxItems": 4},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "null"}],
        "items": False,
        "minItems": 2,
    },
    "any of": {"anyOf": [closed(kind={"const": "a"}), closed(kind={"const": "b"}, n=SHORT)]},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": SHORT}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
            {"properties": {"a": True, "b": True}, "additionalProperties": False},
        ]
    },
    "reference": {
        "$defs": {"leaf": {"anyOf": [{"type": "null"}, closed(x={"type": "boolean"})]}},
        **closed(left={"$ref": "#/$defs/leaf"}, right={"$ref": "#/$defs/leaf"}),
    },
    "pattern": closed(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "formats": closed(
        day={"type": "string", "format": "date"}, ip={"type": "string", "format": "ipv4"}
    ),
    "number": closed(x={"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9}),
    "names of every kind": closed(**{'with "quotes"': SHORT, "ünïcode 😀": SHORT, "a\nb": SHORT}),
    "any constant": {"enum": ["a b", 1, None, True, {"x": [1, "y"]}]},
}


def schema_format(schema: dict[str, Any], **wrapper: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, **wrapper},
    }
