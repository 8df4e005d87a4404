"""Limits of the server on a request, where they are lower than those of the parser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["TOKEN_LIMITS", "check_limits", "check_stream_options"]

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_length")

_OWN = ServerSettings()
"""The parser's limits, which it tells of in its own words."""

_LENGTHS = {
    "messages": ("max_messages", "messages"),
    "tools": ("max_tools", "tools"),
    "stop": ("max_stop", "stop sequences"),
    "logit_bias": ("max_logit_bias", "token ids"),
}


def check_limits(fields: Mapping[str, Any], settings: ServerSettings) -> None:
    """Check that a request keeps to the server's limits; its fields are checked by the parser.

    Raises:
        InvalidRequestError: If it asks for more than this server gives.
    """
    for name, (limit, what) in _LENGTHS.items():
        value, most = fields.get(name), _lowered(settings, limit)
        if most is not None and isinstance(value, list | dict) and len(value) > most:
            raise InvalidRequestError(
                f"{name} has {len(value):,} {what}; this server takes at most {most:,} ({limit}).",
                param=name,
            )
    for name in ("n", *TOKEN_LIMITS):
        limit = "max_n" if name == "n" else "max_tokens"
        value, most = fields.get(name), _lowered(settings, limit)
        if most is not None and isinstance(value, int | float) and value > most:
            raise InvalidRequestError(
                f"{name} may be at most {most:,} on this server ({limit}).", param=name
            )
    chars, depth = (_lowered(settings, limit) for limit in ("max_schema_chars", "max_schema_depth"))
    if chars is None and depth is None:
        return
    for name, schema in _schemas(fields):
        _check_schema(name, schema, settings)


def check_stream_options(fields: Mapping[str, Any]) -> None:
    """Check that the options of a stream are given for one.

    Raises:
        InvalidRequestError: If they are not, or are not what they may be.
    """
    if fields.get("stream_options") is not None and fields.get("stream") is not True:
        PARAMETERS[CHAT]["stream_options"].read(fields["stream_options"])
        raise InvalidRequestError(
            "stream_options is only for a stream, and stream is not true. Set stream, or leave"
            " stream_options out.",
            param="stream_options",
        )


def _lowered(settings: ServerSettings, limit: str) -> int | None:
    """Return a limit, where it is lower than the parser's."""
    most = getattr(settings, limit)
    return None if most == getattr(_OWN, limit) else most


def _schemas(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    form = fields.get("response_format")
    named = form.get("json_schema") if isinstance(form, dict) else None
    if isinstance(named, dict):
        yield "response_format", named.get("schema")
    tools = fields.get("tools")
    for place, tool in enumerate(tools if isinstance(tools, list) else ()):
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            yield f"tools[{place}]", function.get("parameters")


def _check_schema(name: str, schema: Any, settings: ServerSettings) -> None:
    size = len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")))
    if size > settings.max_schema_chars:
        raise InvalidRequestError(
            f"{name}: the schema has {size:,} characters; this server takes at most"
            f" {settings.max_schema_chars:,} (max_schema_chars).",
            param=name,
        )
    level, depth = [schema], 0
    while level := [
        item
        for outer in level
        if isinstance(outer, dict | list)
        for item in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
    if depth > settings.max_schema_depth:
        raise InvalidRequestError(
            f"{name}: the schema is nested {depth:,} levels deep; this server takes at most"
            f" {settings.max_schema_depth:,} (max_schema_depth).",
            param=name,
        )
