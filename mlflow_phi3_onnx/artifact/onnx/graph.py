"""Read what matters of an ONNX graph without loading it: its inputs, weights and attention.

Tensors' bytes are skipped, so the time depends on the number of nodes and not on the size of the
weights.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.artifact.onnx.protobuf import fields, integers, text, views
from mlflow_phi3_onnx.core.dtypes import TENSOR_TYPES
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ExternalFile", "GraphFacts", "read_graph"]

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 1, 3, 5, 6
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 1, 2, 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR = 1, 2, 1
_TENSOR_ELEMENT, _TENSOR_SHAPE, _SHAPE_DIMENSION = 1, 2, 1
_DIMENSION_VALUE, _DIMENSION_NAME = 1, 2

_PRECISIONS = {code: kind.precision for code, kind in TENSOR_TYPES.items() if kind.precision}

# Operators that hold weights in fewer bits, and the inputs of others that are tables, not weights.
_QUANTIZED = {"MatMulNBits", "GatherBlockQuantized"}
_TABLES = {"GroupQueryAttention", "RotaryEmbedding"}


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
        quantized: The bits and the number of weights of each matrix that is quantized, by the name
            of its tensor, which several nodes may share.
        gathered: The bits, the name of the scales and the size of their blocks of each table of
            embeddings that is quantized, by the name of its tensor.
        block_sizes: How many quantized weights share a scale, each size that occurs.
        tensors: The element type and the number of elements of each weight that is a tensor of the
            graph's, by name.
        not_weights: The names of tensors that are parts of quantized weights, or tables.
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
    quantized: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    gathered: dict[str, tuple[int, str, int]] = field(
        default_factory=dict[str, tuple[int, str, int]]
    )
    block_sizes: set[int] = field(default_factory=set[int])
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    not_weights: set[str] = field(default_factory=set[str])

    @property
    def parameters(self) -> int:
        """How many weights there are: of each matrix that is quantized, and of float tensors."""
        quantized = sum(count for _, count in self._all_quantized().values())
        return quantized + sum(self._floats().values())

    @property
    def precision(self) -> str:
        """The form that most weights have: ``int4``, ``int8``, ``fp32``, ..."""
        shares = {_PRECISIONS[element]: count for element, count in self._floats().items()}
        for bits, count in self._all_quantized().values():
            shares[f"int{bits}"] = shares.get(f"int{bits}", 0) + count
        return max(shares, key=shares.__getitem__, default="unknown")

    def _all_quantized(self) -> dict[str, tuple[int, int]]:
        tables = {
            name: (bits, self.tensors.get(scales, (0, 0))[1] * size)
            for name, (bits, scales, size) in self.gathered.items()
        }
        return tables | self.quantized

    def _floats(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for name, (element, count) in self.tensors.items():
            if element in _PRECISIONS and name not in self.not_weights | self.optional:
                counts[element] = counts.get(element, 0) + count
        return counts


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
        for graph in views(memoryview(data), _MODEL_GRAPH):
            _read_graph(graph, facts)
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidModelError(
            f"{path.name} is not a whole ONNX model: it is empty, cut short or damaged."
        ) from error
    if not facts.operators:
        raise InvalidModelError(f"{path.name} is not an ONNX model: it holds no graph.")
    return facts


def _read_graph(data: memoryview, facts: GraphFacts, *, top: bool = True) -> None:
    defaults: set[str] = set()
    for number, value in fields(data):
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
    inputs: list[str] = []
    numbers: dict[str, int] = {}
    for number, value in fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _NODE_INPUT:
            inputs.append(text(value))
        elif number == _NODE_OP_TYPE:
            operator = text(value)
        elif number == _NODE_ATTRIBUTE:
            _read_attribute(value, facts, numbers)
    facts.operators[operator] = facts.operators.get(operator, 0) + 1
    if operator == "GroupQueryAttention":
        facts.attention_windows.add(numbers.get("local_window_size", -1))
    if operator in _QUANTIZED | _TABLES:
        facts.not_weights.update(inputs)
    if operator in _QUANTIZED:
        facts.block_sizes.add(numbers.get("block_size", 0))
    if operator == "MatMulNBits" and len(inputs) > 1:
        count = numbers.get("K", 0) * numbers.get("N", 0)
        facts.quantized[inputs[1]] = (numbers.get("bits", 4), count)
    elif operator == "GatherBlockQuantized" and len(inputs) > 2:
        size = numbers.get("block_size", 0)
        facts.gathered[inputs[0]] = (numbers.get("bits", 4), inputs[2], size)


def _read_attribute(data: memoryview, facts: GraphFacts, numbers: dict[str, int]) -> None:
    name = ""
    for number, value in fields(data):
        if number == _ATTRIBUTE_NAME and isinstance(value, memoryview):
            name = text(value)
        elif number == _ATTRIBUTE_INT and isinstance(value, int):
            numbers[name] = value - (1 << 64) if value >> 63 else value
        elif number == _ATTRIBUTE_GRAPH and isinstance(value, memoryview):
            _read_graph(value, facts, top=False)
        elif number == _ATTRIBUTE_TENSOR and isinstance(value, memoryview):
            _read_tensor(value, facts)


def _read_tensor(data: memoryview, facts: GraphFacts) -> str:
    """Note the weights file that a tensor lies in, if it is in one, and return its name."""
    name = ""
    entries: dict[str, str] = {}
    name, element = "", 0
    for number, value in fields(data):
        if number == _TENSOR_NAME and isinstance(value, memoryview):
            name = text(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            element = value
        elif number == _TENSOR_EXTERNAL_DATA and isinstance(value, memoryview):
            pair = dict(fields(value))
            key, content = pair.get(_ENTRY_KEY), pair.get(_ENTRY_VALUE)
            if isinstance(key, memoryview) and isinstance(content, memoryview):
                entries[text(key)] = text(content)
    facts.tensors[name] = (element, math.prod(integers(data, _TENSOR_DIMS)))
    if location := entries.get("location"):
        file = facts.external.setdefault(location, ExternalFile(location))
        end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
        file.size = max(file.size, end)
    return name


def _read_value_info(data: memoryview) -> tuple[str, int, tuple[int | str, ...]]:
    """Return the name, element type and shape of an input or output."""
    name, element = "", 0
    shape: tuple[int | str, ...] = ()
    for number, value in fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _VALUE_NAME:
            name = text(value)
        elif number == _VALUE_TYPE:
            for tensor in views(value, _TYPE_TENSOR):
                types = [v for n, v in fields(tensor) if n == _TENSOR_ELEMENT]
                element = types[0] if types and isinstance(types[0], int) else 0
                shape = tuple(
                    _length(axis)
                    for axes in views(tensor, _TENSOR_SHAPE)
                    for axis in views(axes, _SHAPE_DIMENSION)
                )
    return name, element, shape


def _length(axis: memoryview) -> int | str:
    length: int | str = ""
    for number, value in fields(axis):
        if number == _DIMENSION_VALUE and isinstance(value, int):
            length = value
        elif number == _DIMENSION_NAME and isinstance(value, memoryview):
            length = text(value)
    return length
