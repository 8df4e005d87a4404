"""The body of a request: read within limits, and parsed where that holds nobody up."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from mlflow_phi3_onnx.core.characters import check_characters
from mlflow_phi3_onnx.core.files import parse_json_object
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.server.errors import (
    BodyTooLargeError,
    ClientGoneError,
    MediaTypeError,
    SlowBodyError,
)

if TYPE_CHECKING:
    from fastapi import Request

    from mlflow_phi3_onnx.server.settings import ServerSettings

__all__ = ["read_fields", "to_json"]

SMALL = 1 << 14
"""Bytes that are parsed and written in the event loop; more go to a thread."""

MOST_DISCARDED = 1 << 26
"""The most bytes of a body that are read before it is refused: a client that cannot send all of it
sees a broken connection, and not why."""


async def read_fields(request: Request, settings: ServerSettings) -> dict[str, Any]:
    """Read a request's JSON object.

    Raises:
        MediaTypeError: If the body says that it is something else, or compressed.
        BodyTooLargeError: If it is larger than the server takes.
        SlowBodyError: If it does not come in time.
        InvalidRequestError: If it is no JSON object, or one that could be read in two ways.
        ClientGoneError: If the client has gone.
    """
    _check_kind(request)
    try:
        data = await asyncio.wait_for(
            _read(request, settings.max_body_bytes), settings.receive_timeout
        )
    except asyncio.TimeoutError as error:
        raise SlowBodyError(
            f"The request's body did not come within {settings.receive_timeout:g} seconds."
        ) from error
    except ClientDisconnect as error:
        raise ClientGoneError("The client has closed the connection.") from error
    if len(data) <= SMALL:
        return _parse(data)
    return await asyncio.to_thread(_parse, data)


def _parse(data: bytes) -> dict[str, Any]:
    fields = parse_json_object(data, "The request's body", InvalidRequestError)
    check_characters(data, fields, lambda key, what: InvalidRequestError(what, param=key or None))
    return fields


def to_json(value: Any) -> bytes:
    """Write JSON, in UTF-8 wherever that can hold it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value, separators=(",", ":")).encode()


def _check_kind(request: Request) -> None:
    kind, _, more = request.headers.get("content-type", "").partition(";")
    charset = more.strip().lower().partition("charset=")[2].strip('"') or "utf-8"
    if kind.strip().lower() != "application/json" or charset not in ("utf-8", "utf8"):
        raise MediaTypeError(
            "The body must be JSON in UTF-8, with the header Content-Type: application/json."
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("The body must not be compressed: leave Content-Encoding out.")


async def _read(request: Request, most: int) -> bytes:
    told = request.headers.get("content-length", "")
    length = int(told) if told.isdecimal() else 0
    data, size = bytearray(), 0
    bound = max(most, MOST_DISCARDED)
    if length <= bound:
        async for part in request.stream():
            size += len(part)
            if size > bound:
                break
            if max(size, length) <= most:
                data += part
            else:
                data.clear()
    if max(size, length) > most:
        raise BodyTooLargeError(
            f"The request's body is larger than {most:,} bytes, which is the most that this server"
            " takes (max_body_bytes)."
        )
    return bytes(data)
