"""Read what matters of an ONNX graph without loading it: its inputs, weights files and attention.

An ONNX file is a protocol buffer. Only the fields below are read, numbered as in ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); tensors' bytes are skipped, so the time
depends on the number of nodes and not on the size of the weights.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ExternalFile", "GraphFacts", "read_graph"]

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_OP_TYPE, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 1, 3, 5, 6
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR = 1, 2, 1
_TENSOR_ELEMENT, _TENSOR_SHAPE, _SHAPE_DIMENSION = 1, 2, 1
_DIMENSION_VALUE, _DIMENSION_NAME = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 10: 2, 16: 2, 17: 1, 18: 1}
"""Bytes of one element, by ``TensorProto.DataType``, for the types that KV caches have."""


@dataclass
class ExternalFile:
    """A file beside the graph that holds weights.

    Attributes:
        location: The file's name, as the graph gives it.
        size: The least number of bytes that the file must have.
    """

    location: str
    size: int = 0


@dataclass
class GraphFacts:
    """What was read of a graph.

    Attributes:
        inputs: The element type (``TensorProto.DataType``) of each input, by name.
        shapes: The length of each input's axes, by name. Where the graph leaves it open, it is the
            name that the graph gives the length, maybe empty.
        optional: The inputs that the graph has a default for. Adapters replace those.
        outputs: As ``inputs``, for the outputs.
        operators: How often each operator occurs, subgraphs included.
        attention_windows: The ``local_window_size`` of each attention node, -1 for full attention.
        external: The weights files, by location.
    """

    inputs: dict[str, int] = field(default_factory=dict[str, int])
    shapes: dict[str, tuple[int | str, ...]] = field(
        default_factory=dict[str, tuple[int | str, ...]]
    )
    optional: set[str] = field(default_factory=set[str])
    outputs: dict[str, int] = field(default_factory=dict[str, int])
    operators: dict[str, int] = field(default_factory=dict[str, int])
    attention_windows: set[int] = field(default_factory=set[int])
    external: dict[str, ExternalFile] = field(default_factory=dict[str, ExternalFile])


class _NotProtobufError(ValueError):
    pass


def read_graph(path: Path) -> GraphFacts:
    """Read the facts of an ONNX file.

    Raises:
        InvalidModelError: If the file is empty, cut short, or not an ONNX model.
    """
    facts = GraphFacts()
    try:
        with path.open("rb") as file:
            # Not closed by hand: views of it may outlive this frame; it goes with the last of them.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for graph in _views(memoryview(data), _MODEL_GRAPH):
            _read_graph(graph, facts)
    except (_NotProtobufError, UnicodeDecodeError, ValueError) as error:
        raise InvalidModelError(
            f"{path.name} is not a whole ONNX model: it is empty, cut short or damaged."
        ) from error
    if not facts.operators:
        raise InvalidModelError(f"{path.name} is not an ONNX model: it holds no graph.")
    return facts


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise _NotProtobufError
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
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
            raise _NotProtobufError
        if position + size > len(data):
            raise _NotProtobufError
        yield number, data[position : position + size]
        position += size


def _views(data: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _text(data: memoryview) -> str:
    return bytes(data).decode("utf-8")


def _read_graph(data: memoryview, facts: GraphFacts, *, top: bool = True) -> None:
    defaults: set[str] = set()
    for number, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _GRAPH_NODE:
            _read_node(value, facts)
        elif number == _GRAPH_INITIALIZER:
            defaults.add(_read_tensor(value, facts))
        elif number == _GRAPH_INPUT and top:
            name, element, shape = _read_value_info(value)
            facts.inputs[name], facts.shapes[name] = element, shape
        elif number == _GRAPH_OUTPUT and top:
            name, element, _ = _read_value_info(value)
            facts.outputs[name] = element
    if top:
        facts.optional = defaults & facts.inputs.keys()


def _read_node(data: memoryview, facts: GraphFacts) -> None:
    operator = ""
    window = -1
    for number, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _NODE_OP_TYPE:
            operator = _text(value)
        elif number == _NODE_ATTRIBUTE:
            name = ""
            for inner, content in _fields(value):
                if inner == _ATTRIBUTE_NAME and isinstance(content, memoryview):
                    name = _text(content)
                elif inner == _ATTRIBUTE_INT and name == "local_window_size":
                    assert isinstance(content, int)
                    window = content - (1 << 64) if content >> 63 else content
                elif inner == _ATTRIBUTE_GRAPH and isinstance(content, memoryview):
                    _read_graph(content, facts, top=False)
                elif inner == _ATTRIBUTE_TENSOR and isinstance(content, memoryview):
                    _read_tensor(content, facts)
    facts.operators[operator] = facts.operators.get(operator, 0) + 1
    if operator == "GroupQueryAttention":
        facts.attention_windows.add(window)


def _read_tensor(data: memoryview, facts: GraphFacts) -> str:
    """Note the weights file that a tensor lies in, if it is in one, and return its name."""
    name = ""
    entries: dict[str, str] = {}
    for number, content in _fields(data):
        if number == _TENSOR_NAME and isinstance(content, memoryview):
            name = _text(content)
        elif number == _TENSOR_EXTERNAL_DATA and isinstance(content, memoryview):
            pair = dict(_fields(content))
            key, value = pair.get(_ENTRY_KEY), pair.get(_ENTRY_VALUE)
            if isinstance(key, memoryview) and isinstance(value, memoryview):
                entries[_text(key)] = _text(value)
    if location := entries.get("location"):
        file = facts.external.setdefault(location, ExternalFile(location))
        end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
        file.size = max(file.size, end)
    return name


def _read_value_info(data: memoryview) -> tuple[str, int, tuple[int | str, ...]]:
    """Return the name, element type and shape of an input or output."""
    name, element = "", 0
    shape: tuple[int | str, ...] = ()
    for number, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _VALUE_NAME:
            name = _text(value)
        elif number == _VALUE_TYPE:
            for tensor in _views(value, _TYPE_TENSOR):
                types = [v for n, v in _fields(tensor) if n == _TENSOR_ELEMENT]
                element = types[0] if types and isinstance(types[0], int) else 0
                shape = tuple(
                    _length(axis)
                    for axes in _views(tensor, _TENSOR_SHAPE)
                    for axis in _views(axes, _SHAPE_DIMENSION)
                )
    return name, element, shape


def _length(axis: memoryview) -> int | str:
    length: int | str = ""
    for number, value in _fields(axis):
        if number == _DIMENSION_VALUE and isinstance(value, int):
            length = value
        elif number == _DIMENSION_NAME and isinstance(value, memoryview):
            length = _text(value)
    return length
