"""Keywords of a JSON schema that no grammar can hold, found by trying each alone."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.schemas import KINDS, OF_NAMES, OF_SCHEMAS, kinds_meant
from mlflow_phi3_onnx.errors import InvalidRequestError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Keywords"]

MAX_COUNT = (1 << 31) - 1
"""No completion is that long, so a maximum from here on says nothing."""

_LEAST = ("minLength", "minItems", "minProperties")
_MOST = ("maxLength", "maxItems", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NUMBERS = (*_LEAST, *_MOST, *_BOUNDS)
_TEXTS = ("pattern", "$id", "$schema")


class Keywords:
    """Copies schemas as they can be held, with every count as an integer.

    Without ``strict``, what cannot be held is left out, and a ``type`` in the words of another
    language is read as the kind that it means. A least count is refused even so: what is shorter
    would be wrong, and nothing that long is ever written.

    Args:
        param: The request's field that holds the schemas, for messages.
        strict: Whether what cannot be held is refused.
    """

    def __init__(self, param: str, *, strict: bool) -> None:
        self._param = param
        self._strict = strict
        self._refused = ""

    def held(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Copy a schema of few levels.

        Raises:
            InvalidRequestError: If a keyword cannot be held and is not left out.
        """
        copied = self._copied(schema)
        # A keyword that cannot be held alone may say nothing beside others.
        if self._refused and _compiler().why_not(copied):
            raise InvalidRequestError(
                f"{self._param} cannot be used as a grammar: {self._refused}", param=self._param
            )
        return copied

    def _copied(self, value: Any, *, names: bool = False) -> Any:
        if isinstance(value, list | tuple):
            return [self._copied(item) for item in value]
        if not isinstance(value, dict):
            return value
        if names:
            return {name: self._copied(item) for name, item in value.items()}
        schema = {key: self._item(key, item) for key, item in value.items()}
        named = schema.get("type")
        if isinstance(named, list) and all(kind in named for kind in KINDS):
            del schema["type"]
        named = json.dumps(schema.get("type"))
        return {key: item for key, item in schema.items() if self._holds(key, item, named)}

    def _item(self, key: str, item: Any) -> Any:
        if key in OF_SCHEMAS:
            return item
        if key == "type" and not self._strict and isinstance(item, str | list):
            kinds = kinds_meant(item)
            return kinds[0] if isinstance(item, str) and len(kinds) == 1 else kinds
        if key in (*_LEAST, *_MOST) and isinstance(item, float) and item.is_integer():
            return int(item)
        if key == "patternProperties" and isinstance(item, dict):
            item = {
                name: part for name, part in item.items() if self._holds("pattern", name, told=key)
            }
        return self._copied(item, names=key in OF_NAMES)

    def _holds(self, key: str, item: Any, named: str = "null", *, told: str = "") -> bool:
        if not _is_tried(key, item):
            return True  # if it cannot be held, that shows when the whole is compiled
        if key in _MOST and item >= MAX_COUNT and not self._strict:
            return False
        why = _why_not(key, item, named)
        if why and (self._strict or key in (*_LEAST, *_MOST)):
            self._refused = self._refused or f"{told or key} cannot be held: {why}"
            return True
        return not why


def _is_tried(key: str, item: Any) -> bool:
    if isinstance(item, str):
        return key in _TEXTS
    return isinstance(item, int | float) and not isinstance(item, bool) and key in _NUMBERS


@lru_cache(maxsize=256)
def _why_not(key: str, item: Any, named: str) -> str:
    """Say why a keyword cannot be held beside a type, in JSON; nothing if it can."""
    beside = {} if named == "null" else {"type": json.loads(named)}
    return _compiler().why_not({key: item, **beside})


def _compiler() -> ModuleType:
    # llguidance takes a tenth of a second to import, which most programs never need.
    from mlflow_phi3_onnx.grammar import compiler

    return compiler
