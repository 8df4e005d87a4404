"""The part of the protocol-buffer format that ONNX files need.

The fields are numbered as in ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["NotProtobufError", "ProtobufReader", "encoded", "integers", "text"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LAST_FIELD = (1 << 29) - 1


class NotProtobufError(ValueError):
    """The bytes are no protocol buffer, or one with more fields than are read."""


class ProtobufReader:
    """Reads fields, up to a number of them in all.

    Args:
        most: How many fields it reads.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def fields(
        self, data: memoryview, once: Mapping[int, int] = MappingProxyType({})
    ) -> Iterator[tuple[int, int | memoryview]]:
        """Yield the number and value of each field: an int for a varint, else a view of its bytes.

        Numbers of four and eight bytes are passed over: nothing that is read here has any.

        Args:
            data: The message.
            once: The fields that may not stand there twice, because they would be merged, or not
                beside another that has the same value here.

        Raises:
            NotProtobufError: If the bytes are no protocol buffer, or have too many fields, or could
                be read in two ways.
        """
        position = 0
        seen: set[int] = set()
        while position < len(data):
            self._left -= 1
            if self._left < 0:
                raise NotProtobufError
            tag, position = _varint(data, position)
            number, wire = tag >> 3, tag & 7
            # Of a larger one, other readers drop the upper bits.
            if not 0 < number <= _LAST_FIELD:
                raise NotProtobufError
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
            if wire == _BYTES:
                if number in once and once[number] in seen:
                    raise NotProtobufError
                seen.add(once.get(number, 0))
                yield number, data[position : position + size]
            position += size

    def messages(
        self, data: memoryview, once: Mapping[int, int] = MappingProxyType({})
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield the number and bytes of each field that has bytes; otherwise as :meth:`fields`."""
        for number, value in self.fields(data, once):
            if isinstance(value, memoryview):
                yield number, value


def integers(value: int | memoryview, most: int) -> list[int]:
    """Return the integers that one field of a repeated field holds: one, or some packed ones.

    Args:
        value: The field's value.
        most: How many to read at most.

    Raises:
        NotProtobufError: If they are cut short.
    """
    if isinstance(value, int):
        return [value]
    found: list[int] = []
    position = 0
    while position < len(value) and len(found) < most:
        one, position = _varint(value, position)
        found.append(one)
    return found


def encoded(fields: Iterable[tuple[int, int | memoryview | bytes]]) -> bytes:
    """Write fields, each an int or bytes, as a protocol buffer."""
    parts: list[bytes | memoryview] = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_as_varint(number << 3 | _VARINT), _as_varint(value)]
        else:
            parts += [_as_varint(number << 3 | _BYTES), _as_varint(len(value)), value]
    return b"".join(parts)


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
            if result >> 64:
                raise NotProtobufError
            return result, position
        shift += 7


def _as_varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
