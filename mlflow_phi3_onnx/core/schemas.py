"""The words of JSON schemas: where they stand, and which kinds of values they mean."""

from __future__ import annotations

from typing import Any

__all__ = ["KINDS", "OF_NAMES", "OF_SCHEMAS", "allows_null", "kinds_meant"]

OF_SCHEMAS = {"default": True, "const": True, "enum": False, "examples": False}
"""The keywords of JSON Schema that hold values, and whether the value may be null itself."""

OF_NAMES = frozenset(
    [
        *("properties", "patternProperties", "$defs", "definitions"),
        *("dependentSchemas", "dependentRequired", "dependencies"),
    ]
)
"""The keywords in whose objects the keys are names, and none of them is a keyword."""

# Gemini writes the kinds in capitals; collections of functions have those of Python and Java.
_WORDS = {
    "string": ("str",),
    "integer": ("int", "long"),
    "number": ("float", "double"),
    "boolean": ("bool",),
    "null": ("none",),
    "array": ("list", "tuple", "arraylist"),
    "object": ("dict", "hashmap"),
}

KINDS = tuple(_WORDS)
"""The kinds of JSON values, as a schema's ``type`` names them."""

_MEANT: dict[str, tuple[str, ...]] = {
    word: (kind,) for kind, words in _WORDS.items() for word in (kind, *words)
}
_MEANT["any"] = KINDS


def kinds_meant(named: Any) -> list[Any]:
    """Read a schema's ``type`` as the kinds that its words mean, in any case; others stay."""
    words: list[Any] = named if isinstance(named, list) else [named]
    return [
        kind
        for word in words
        for kind in (_MEANT.get(word.lower(), (word,)) if isinstance(word, str) else (word,))
    ]


def allows_null(named: Any, listed: Any, *, nullable: bool) -> bool:
    """Tell whether null is one of a schema's values, as far as its own words say.

    Args:
        named: Its ``type``, or None.
        listed: Its ``enum``, or None.
        nullable: Whether it says so in OpenAPI's way.
    """
    if nullable:
        return True
    if isinstance(listed, list) and None not in listed:
        return False
    return named is None or "null" in kinds_meant(named)
