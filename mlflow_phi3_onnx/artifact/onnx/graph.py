"""Read what matters of an ONNX graph without loading it: its inputs, weights and attention.

Tensors' bytes are skipped, so the time depends on the number of nodes and not on the size of the
weights.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.artifact.onnx.protobuf import (
    NotProtobufError,
    ProtobufReader,
    integers,
    text,
)
from mlflow_phi3_onnx.core.bounds import MAX_GRAPH_DEPTH, MAX_GRAPH_FIELDS, MAX_RANK
from mlflow_phi3_onnx.core.dtypes import TENSOR_TYPES
from mlflow_phi3_onnx.core.files import open_file
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["FULL_ATTENTION", "GraphFacts", "join", "read_graph"]

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 20, 25
_TRAINING_GRAPHS = (1, 2)
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 7, 11
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TEXT = 1, 3, 4
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSES = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 1, 2, 8, 13
_TENSOR_INT64S, _TENSOR_RAW, _INT64 = 7, 9, 7
_INT32 = (1 << 32) - 1
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR = 1, 2, 1
_TENSOR_ELEMENT, _TENSOR_SHAPE, _SHAPE_DIMENSION = 1, 2, 1
_DIMENSION_VALUE, _DIMENSION_NAME = 1, 2

# What may stand in a message only once.
_ONE_GRAPH = {_MODEL_GRAPH: _MODEL_GRAPH}
_ONE_VALUE = {number: number for number in (5, 6, 22)}  # of an attribute
_ONE_EACH = {number: number for number in (1, 2)}
_ONE_TYPE: Mapping[int, int] = dict.fromkeys((_TYPE_TENSOR, 4, 5, 8, 9), _TYPE_TENSOR)

_PRECISIONS = {code: kind.precision for code, kind in TENSOR_TYPES.items() if kind.precision}

# Operators that hold weights in fewer bits, and the inputs of others that are tables, not weights.
_QUANTIZED = {"MatMulNBits", "GatherBlockQuantized"}
_TABLES = {"GroupQueryAttention", "RotaryEmbedding"}

# What ONNX Runtime calls a place in its own memory, where a file's name should be.
_MEMORY = "_ORT_MEM_ADDR_"

FULL_ATTENTION = frozenset({-1})
"""The windows of a graph whose attention has none."""


@dataclass(frozen=True)
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
        first_range: Of a graph that has other position factors beyond its original context, the
            tokens of that context; 0 where there is no such graph, or it could not be told.
        external: The files that hold weights, or what an execution provider has compiled, each with
            the least bytes that it must have.
        block_sizes: How many quantized weights share a scale, each size that occurs.
        parameters: How many weights there are.
        precision: The form that most weights have: ``int4``, ``int8``, ``fp32``, ...
    """

    inputs: Mapping[str, int]
    shapes: Mapping[str, tuple[int | str, ...]]
    optional: frozenset[str] = frozenset()
    outputs: Mapping[str, int] = field(default_factory=dict[str, int])
    operators: Mapping[str, int] = field(default_factory=dict[str, int])
    attention_windows: frozenset[int] = frozenset()
    first_range: int = 0
    external: Mapping[str, int] = field(default_factory=dict[str, int])
    block_sizes: frozenset[int] = frozenset()
    parameters: int = 0
    precision: str = "unknown"


def join(stages: Sequence[GraphFacts]) -> GraphFacts:
    """Return what is to be known of graphs that are run one after the other, as of one graph."""
    if len(stages) == 1:
        return stages[0]
    inputs, outputs = (
        {name: kind for facts in stages for name, kind in getattr(facts, field).items()}
        for field in ("inputs", "outputs")
    )
    between = inputs.keys() & outputs.keys()
    external: dict[str, int] = {}
    for file, least in (item for facts in stages for item in facts.external.items()):
        external[file] = max(external.get(file, 0), least)
    return GraphFacts(
        inputs={name: kind for name, kind in inputs.items() if name not in between},
        shapes={n: s for facts in stages for n, s in facts.shapes.items() if n not in between},
        optional=frozenset().union(*(facts.optional for facts in stages)),
        outputs={name: kind for name, kind in outputs.items() if name not in between},
        operators=sum((Counter(facts.operators) for facts in stages), Counter()),
        attention_windows=frozenset().union(*(facts.attention_windows for facts in stages)),
        first_range=max(facts.first_range for facts in stages),
        external=external,
        block_sizes=frozenset().union(*(facts.block_sizes for facts in stages)),
        parameters=sum(facts.parameters for facts in stages),
        precision=max(stages, key=lambda facts: facts.parameters).precision,
    )


def read_graph(path: Path) -> GraphFacts:
    """Read the facts of an ONNX file.

    Raises:
        InvalidModelError: If the file is empty, cut short, no ONNX model or beyond the bounds of
            one, or says of its weights what cannot be.
    """
    reader = _Reader(path.name)
    try:
        with open_file(path) as file:
            # Not closed by hand: views of it may outlive this frame; it goes with the last of them.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader.read_model(memoryview(data))
        if path.suffix == ".ort" or data[4:8] == b"ORTM":  # a format of ONNX Runtime's own
            raise NotProtobufError
    except (NotProtobufError, UnicodeDecodeError, ValueError) as error:
        raise InvalidModelError(
            f"{path.name} is not a whole ONNX model: it is empty, cut short or damaged."
        ) from error
    return reader.facts()


class _Reader:
    """Walks through a model and notes what it meets."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._protobuf = ProtobufReader(MAX_GRAPH_FIELDS)
        self._inputs: dict[str, int] = {}
        self._shapes: dict[str, tuple[int | str, ...]] = {}
        self._optional: set[str] = set()
        self._outputs: dict[str, int] = {}
        self._operators: Counter[str] = Counter()
        self._windows: set[int] = set()
        self._external: dict[str, int] = {}
        self._block_sizes: set[int] = set()
        # By the name of the tensor, which several nodes may share:
        self._tensors: dict[str, tuple[int, int]] = {}  # element type and count
        self._matrices: dict[str, tuple[int, int]] = {}  # bits and count
        self._embeddings: dict[str, tuple[int, str, int]] = {}  # bits, scales, block size
        self._not_weights: set[str] = set()
        self._integers: dict[str, int] = {}
        self._greater: dict[str, str] = {}  # what a comparison's number is called, by its output
        self._conditions: list[str] = []

    def read_model(self, data: memoryview) -> None:
        for number, value in self._protobuf.messages(data, _ONE_GRAPH):
            if number == _MODEL_GRAPH:
                self._read_graph(value, 0)
            elif number == _MODEL_FUNCTION:
                for inner, part in self._protobuf.messages(value):
                    if inner == _FUNCTION_NODE:
                        self._read_node(part, 1)
                    elif inner == _FUNCTION_ATTRIBUTE:
                        self._read_attribute(part, {}, {}, 1)
            elif number == _MODEL_TRAINING:
                for graph in self._parts(value, _TRAINING_GRAPHS):
                    self._read_graph(graph, 1)

    def facts(self) -> GraphFacts:
        """Put together what was noted.

        Raises:
            InvalidModelError: If there was no graph.
        """
        if not self._operators:
            raise self._refusal("is not an ONNX model: it holds no graph")
        shares: Counter[str] = Counter()
        for bits, count in self._quantized().values():
            shares[f"int{bits}"] += count
        for name, (element, count) in self._tensors.items():
            if element in _PRECISIONS and name not in self._not_weights | self._optional:
                shares[_PRECISIONS[element]] += count
        return GraphFacts(
            inputs=self._inputs,
            shapes=self._shapes,
            optional=frozenset(self._optional),
            outputs=self._outputs,
            operators=self._operators,
            attention_windows=frozenset(self._windows),
            first_range=self._first_range(),
            external=self._external,
            block_sizes=frozenset(self._block_sizes),
            parameters=shares.total(),
            precision=max(shares, key=shares.__getitem__, default="unknown"),
        )

    def _first_range(self) -> int:
        """Return the number that an ``If`` compares with: LongRoPE's original context."""
        numbers = [self._integers.get(self._greater.get(c, ""), 0) for c in self._conditions]
        return max(numbers, default=0)

    def _quantized(self) -> dict[str, tuple[int, int]]:
        tables = {
            name: (bits, self._tensors.get(scales, (0, 0))[1] * size)
            for name, (bits, scales, size) in self._embeddings.items()
        }
        return tables | self._matrices

    def _refusal(self, what: str) -> InvalidModelError:
        return InvalidModelError(f"{self._file} {what}.")

    def _parts(
        self, data: memoryview, wanted: tuple[int, ...], once: Mapping[int, int] = _ONE_EACH
    ) -> list[memoryview]:
        return [value for number, value in self._protobuf.messages(data, once) if number in wanted]

    def _read_graph(self, data: memoryview, depth: int) -> None:
        if depth > MAX_GRAPH_DEPTH:
            raise self._refusal(f"has graphs nested deeper than {MAX_GRAPH_DEPTH} levels")
        defaults: set[str] = set()
        for number, value in self._protobuf.messages(data):
            if number == _GRAPH_NODE:
                self._read_node(value, depth)
            elif number == _GRAPH_INITIALIZER:
                defaults.add(self._read_tensor(value))
            elif number == _GRAPH_SPARSE:
                self._read_sparse(value)
            elif number == _GRAPH_INPUT and depth == 0:
                name, element, shape = self._read_value_info(value)
                self._inputs[name], self._shapes[name] = element, shape
            elif number == _GRAPH_OUTPUT and depth == 0:
                name, element, _ = self._read_value_info(value)
                self._outputs[name] = element
        if depth == 0:
            self._optional = defaults & self._inputs.keys()

    def _read_node(self, data: memoryview, depth: int) -> None:
        operator = ""
        inputs: list[str] = []
        output = ""
        numbers: dict[str, int] = {}
        texts: dict[str, memoryview] = {}
        for number, value in self._protobuf.messages(data):
            if number == _NODE_INPUT:
                inputs.append(text(value))
            elif number == _NODE_OUTPUT:
                output = output or text(value)
            elif number == _NODE_OP_TYPE:
                operator = text(value)
            elif number == _NODE_ATTRIBUTE:
                self._read_attribute(value, numbers, texts, depth)
        self._operators[operator] += 1
        if operator == "GroupQueryAttention":
            self._windows.add(numbers.get("local_window_size", -1))
        if operator == "Greater" and len(inputs) > 1:
            self._greater[output] = inputs[1]
        elif operator == "If":
            self._conditions += inputs[:1]
        elif operator == "EPContext" and not numbers.get("embed_mode", 1):
            self._external.setdefault(text(texts.get("ep_cache_context", memoryview(b""))), 0)
        self._note_weights(operator, inputs, numbers)

    def _note_weights(self, operator: str, inputs: list[str], numbers: dict[str, int]) -> None:
        if operator in _QUANTIZED | _TABLES:
            self._not_weights.update(inputs)
        if operator in _QUANTIZED:
            self._block_sizes.add(numbers.get("block_size", 0))
        if operator == "MatMulNBits" and len(inputs) > 1:
            count = numbers.get("K", 0) * numbers.get("N", 0)
            self._matrices[inputs[1]] = (numbers.get("bits", 4), count)
        elif operator == "GatherBlockQuantized" and len(inputs) > 2:
            size = numbers.get("block_size", 0)
            self._embeddings[inputs[0]] = (numbers.get("bits", 4), inputs[2], size)

    def _read_attribute(
        self, data: memoryview, numbers: dict[str, int], texts: dict[str, memoryview], depth: int
    ) -> None:
        name = ""
        given: list[int] = []
        written: list[memoryview] = []
        for number, value in self._protobuf.fields(data, _ONE_VALUE):
            if isinstance(value, int):
                given += [_signed(value)] if number == _ATTRIBUTE_INT else []
            elif number == _ATTRIBUTE_NAME:
                name = text(value)
            elif number == _ATTRIBUTE_TEXT:
                written.append(value)
            elif number in _ATTRIBUTE_TENSORS:
                self._read_tensor(value)
            elif number in _ATTRIBUTE_GRAPHS:
                self._read_graph(value, depth + 1)
            elif number in _ATTRIBUTE_SPARSES:
                self._read_sparse(value)
        numbers.update((name, number) for number in given)
        texts.update((name, content) for content in written)

    def _read_sparse(self, data: memoryview) -> None:
        for tensor in self._parts(data, _SPARSE_TENSORS):
            self._read_tensor(tensor)

    def _read_tensor(self, data: memoryview) -> str:
        """Note a tensor, and the file that it lies in if it is in one, and return its name."""
        name, element = "", 0
        axes: list[int] = []
        one: list[int] = []
        raw: memoryview | None = None
        entries: list[tuple[str, str]] = []
        for number, value in self._protobuf.fields(data):
            if number == _TENSOR_DIMS and len(axes) <= MAX_RANK:
                axes += integers(value, MAX_RANK + 1)
            elif number == _TENSOR_INT64S and len(one) < 2:
                one += integers(value, 2)
            elif isinstance(value, int):
                element = value & _INT32 if number == _TENSOR_TYPE else element
            elif number == _TENSOR_NAME:
                name = text(value)
            elif number == _TENSOR_RAW:
                raw = value
            elif number == _TENSOR_EXTERNAL_DATA:
                pair = dict(self._protobuf.messages(value))
                key, content = (pair.get(part, value[:0]) for part in (_ENTRY_KEY, _ENTRY_VALUE))
                entries.append((text(key), text(content)))
        if len(axes) > MAX_RANK or any(_signed(axis) < 0 for axis in axes):
            raise self._refusal(
                f"has a tensor with more than {MAX_RANK} axes, or one of negative length"
            )
        self._tensors[name] = (element, math.prod(axes))
        if raw is not None:
            one = [int.from_bytes(raw, "little")] if len(raw) == 8 else []
        if element == _INT64 and len(one) == 1:
            self._integers[name] = _signed(one[0])
        if entries:
            self._note_external(entries)
        return name

    def _note_external(self, entries: list[tuple[str, str]]) -> None:
        known = dict(entries)
        location = known.get("location", "")
        if len(known) != len(entries) or not location or _MEMORY in location:
            raise self._refusal(
                "does not say of a tensor, or says twice, in which file its numbers are"
            )
        numbers = [known.get(key, "0") for key in ("offset", "length")]
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise self._refusal(
                f"names a place in {location} that is no place: offset and length must be whole"
                " numbers from 0"
            )
        end = sum(map(int, numbers))
        self._external[location] = max(self._external.get(location, 0), end)

    def _read_value_info(self, data: memoryview) -> tuple[str, int, tuple[int | str, ...]]:
        """Return the name, element type and shape of an input or output."""
        name, element = "", 0
        shape: tuple[int | str, ...] = ()
        for number, value in self._protobuf.messages(data, _ONE_EACH):
            if number == _VALUE_NAME:
                name = text(value)
            elif number == _VALUE_TYPE:
                for tensor in self._parts(value, (_TYPE_TENSOR,), _ONE_TYPE):
                    for inner, part in self._protobuf.fields(tensor, _ONE_EACH):
                        if isinstance(part, int):
                            element = part & _INT32 if inner == _TENSOR_ELEMENT else element
                        elif inner == _TENSOR_SHAPE:
                            axes = self._parts(part, (_SHAPE_DIMENSION,), {})
                            shape = tuple(map(self._length, axes))
        return name, element, shape

    def _length(self, axis: memoryview) -> int | str:
        length: int | str = ""
        for number, value in self._protobuf.fields(axis):
            if number == _DIMENSION_VALUE and isinstance(value, int):
                length = value
            elif number == _DIMENSION_NAME and isinstance(value, memoryview):
                length = text(value)
        return length


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
