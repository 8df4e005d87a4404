"""The part of the protocol-buffer format that ONNX files need.

The fields are numbered as in ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NotProtobufError", "fields", "integers", "text", "views"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class NotProtobufError(ValueError):
    """The bytes are no protocol buffer."""


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: an int for a varint, else a view of its bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise NotProtobufError
        if position + size > len(data):
            raise NotProtobufError
        yield number, data[position : position + size]
        position += size


def views(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the bytes of each field of one number."""
    for number, value in fields(data):
        if number == wanted and isinstance(value, memoryview):
            yield value


def integers(data: memoryview, wanted: int) -> Iterator[int]:
    """Yield the integers of a repeated field, packed or not."""
    for number, value in fields(data):
        if number != wanted:
            continue
        if isinstance(value, int):
            yield value
            continue
        position = 0
        while position < len(value):
            one, position = _varint(value, position)
            yield one


def text(data: memoryview) -> str:
    """Decode a text."""
    return bytes(data).decode("utf-8")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise NotProtobufError
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
