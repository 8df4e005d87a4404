"""Read what an ``.onnx_adapter`` file holds without loading it: names, types and shapes.

The file is a FlatBuffer (https://flatbuffers.dev/internals), of ONNX Runtime's schema
``onnxruntime/lora/adapter_format/adapter_schema.fbs``. Numbers are skipped, but there must be as
many as the shapes say.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import TYPE_CHECKING, NamedTuple

from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ADAPTER_SUFFIX", "AdapterParameter", "read_adapter_file"]

ADAPTER_SUFFIX = ".onnx_adapter"

_IDENTIFIER = b"TORT"
_FORMAT_VERSION = 1
_ADAPTER_FORMAT, _ADAPTER_PARAMETERS = 0, 3
_PARAMETER_NAME, _PARAMETER_SHAPE, _PARAMETER_ELEMENT, _PARAMETER_DATA = 0, 1, 2, 3

# By TensorProto.DataType; an adapter's numbers are of one of these.
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 10: 2, 11: 8, 16: 2}


class AdapterParameter(NamedTuple):
    """One tensor of an adapter.

    Attributes:
        element: The type of its numbers, as ``TensorProto.DataType``.
        shape: The length of its axes.
    """

    element: int
    shape: tuple[int, ...]


class _DamagedError(ValueError):
    pass


def read_adapter_file(path: Path) -> dict[str, AdapterParameter]:
    """Read the parameters of an adapter, by name.

    Args:
        path: The file.

    Raises:
        InvalidModelError: If it is no adapter, is cut short or damaged, or of a later format.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Buffer(data))
    except (_DamagedError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise InvalidModelError(
            f"{path.name} is not a whole {ADAPTER_SUFFIX} file of ONNX Runtime: it is something"
            " else, cut short or damaged."
        ) from error


class _Buffer:
    """The places in a FlatBuffer. Offsets that lead out of it raise an error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data

    def number(self, form: str, position: int) -> int:
        if position < 0:
            raise _DamagedError
        return struct.unpack_from(f"<{form}", self.data, position)[0]

    def follow(self, position: int) -> int:
        return position + self.number("I", position)

    def field(self, table: int, index: int) -> int | None:
        """Return the place of a table's field, or None where it has its default."""
        vtable = table - self.number("i", table)
        entry = 4 + 2 * index
        if entry + 2 > self.number("H", vtable):
            return None
        offset = self.number("H", vtable + entry)
        return table + offset if offset else None

    def scalar(self, table: int, index: int) -> int:
        place = self.field(table, index)
        return 0 if place is None else self.number("i", place)

    def vector(self, table: int, index: int, width: int) -> tuple[int, int]:
        """Return the place of a vector's first element, and how many it has."""
        place = self.field(table, index)
        if place is None:
            return 0, 0
        start = self.follow(place)
        count = self.number("I", start)
        if start + 4 + count * width > len(self.data):
            raise _DamagedError
        return start + 4, count

    def text(self, table: int, index: int) -> str:
        start, size = self.vector(table, index, 1)
        if self.data[start + size : start + size + 1] != b"\0":
            raise _DamagedError
        return self.data[start : start + size].decode("utf-8")


def _read(buffer: _Buffer) -> dict[str, AdapterParameter]:
    if buffer.data[4:8] != _IDENTIFIER:
        raise _DamagedError
    adapter = buffer.follow(0)
    if buffer.scalar(adapter, _ADAPTER_FORMAT) != _FORMAT_VERSION:
        raise _DamagedError
    first, count = buffer.vector(adapter, _ADAPTER_PARAMETERS, 4)
    parameters: dict[str, AdapterParameter] = {}
    for place in range(first, first + 4 * count, 4):
        table = buffer.follow(place)
        parameter = _read_parameter(buffer, table)
        parameters[buffer.text(table, _PARAMETER_NAME)] = parameter
    if not parameters or len(parameters) != count:
        raise _DamagedError
    return parameters


def _read_parameter(buffer: _Buffer, table: int) -> AdapterParameter:
    start, axes = buffer.vector(table, _PARAMETER_SHAPE, 8)
    shape = struct.unpack_from(f"<{axes}q", buffer.data, start)
    element = buffer.scalar(table, _PARAMETER_ELEMENT)
    _, size = buffer.vector(table, _PARAMETER_DATA, 1)
    if element not in _ELEMENT_BYTES or min(shape, default=0) < 0:
        raise _DamagedError
    if size != math.prod(shape) * _ELEMENT_BYTES[element]:
        raise _DamagedError
    return AdapterParameter(element, shape)
