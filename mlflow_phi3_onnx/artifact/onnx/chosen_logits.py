"""A graph that gives logits of the tokens that they are wanted of, and not of all.

The layer that makes logits of numbers is the largest of a model, and a prompt needs those of its
last token only. So a ``Slice`` is put before it, with an input that says where to begin. The file
stays as it is: the graph is changed in memory, without its weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.artifact.onnx.protobuf import ProtobufReader, encoded, text
from mlflow_phi3_onnx.core.bounds import MAX_GRAPH_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["FIRST_WANTED", "with_chosen_logits"]

FIRST_WANTED = "mlflow_phi3_onnx.first_wanted"
"""The input that was added, of shape ``[1]``: the place of the first token that logits are wanted
of; negative numbers count from the end."""

MAX_BYTES = 64 << 20
"""The largest file that is changed in memory: larger ones hold their weights themselves."""

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 7, 1, 5, 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE = 1, 2, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_INT64 = 7
_SLICED, _ENDS, _AXES = (f"{FIRST_WANTED}/{part}" for part in ("sliced", "ends", "axes"))
_TO_THE_END = (1 << 63) - 1
_TOKENS = 1
"""The axis of the tokens."""

_LAYERS = {"MatMul", "MatMulNBits"}
_BEHIND = {"Cast", "Mul", "Div", "Tanh"}
"""What may stand between the layer and the logits: it changes each number by itself."""


def with_chosen_logits(path: Path) -> bytes | None:
    """Read a decoder's graph, and add the input :data:`FIRST_WANTED`.

    Args:
        path: The ONNX file. It was checked before.

    Returns:
        The graph without the weights of other files; None where it holds its weights itself, or
        does not end as decoders do.
    """
    if path.stat().st_size > MAX_BYTES:
        return None
    reader = ProtobufReader(MAX_GRAPH_FIELDS)
    model = dict(enumerate(reader.fields(memoryview(path.read_bytes()))))
    given = [(i, v) for i, (number, v) in model.items() if number == _MODEL_GRAPH]
    if len(given) != 1 or isinstance(given[0][1], int):
        return None
    graph = list(reader.messages(given[0][1]))
    nodes = {
        place: list(reader.messages(value))
        for place, (number, value) in enumerate(graph)
        if number == _GRAPH_NODE
    }
    place = _layer(nodes)
    if place is None:
        return None
    layer = nodes[place]
    first = next(i for i, (number, _) in enumerate(layer) if number == _NODE_INPUT)
    whole, layer[first] = layer[first][1], (_NODE_INPUT, _bytes(_SLICED))
    graph[place] = (_GRAPH_NODE, _message(layer))
    names = [(_NODE_INPUT, _bytes(name)) for name in (FIRST_WANTED, _ENDS, _AXES)]
    cut = [(_NODE_OUTPUT, _bytes(_SLICED)), (_NODE_OP_TYPE, _bytes("Slice"))]
    # Before the layer: a graph's nodes are in the order in which they are computed.
    graph.insert(place, (_GRAPH_NODE, _message([(_NODE_INPUT, whole), *names, *cut])))
    graph += [
        (_GRAPH_INITIALIZER, _integer(_ENDS, _TO_THE_END)),
        (_GRAPH_INITIALIZER, _integer(_AXES, _TOKENS)),
        (_GRAPH_INPUT, _INPUT),
    ]
    model[given[0][0]] = (_MODEL_GRAPH, _message(graph))
    return encoded(model.values())


def _layer(nodes: Mapping[int, Sequence[tuple[int, memoryview]]]) -> int | None:
    """Find the place of the node whose result becomes the logits."""

    def texts(place: int, wanted: int) -> list[str]:
        return [text(value) for number, value in nodes[place] if number == wanted]

    makers = {name: place for place in nodes for name in texts(place, _NODE_OUTPUT)}
    place = makers.get("logits")
    for _ in nodes:  # at most: a graph that is broken may go round in a circle
        if place is None:
            break
        inputs, (operator, *_) = texts(place, _NODE_INPUT), [*texts(place, _NODE_OP_TYPE), ""]
        if operator not in _BEHIND:
            return place if operator in _LAYERS and inputs else None
        place = next((makers[name] for name in inputs if name in makers), None)
    return None


def _bytes(value: str) -> memoryview:
    return memoryview(value.encode())


def _message(fields: Iterable[tuple[int, int | memoryview]]) -> memoryview:
    return memoryview(encoded(fields))


def _integer(name: str, value: int) -> memoryview:
    numbers = memoryview(value.to_bytes(8, "little", signed=True))
    named = [(_TENSOR_NAME, _bytes(name)), (_TENSOR_RAW, numbers)]
    return _message([(_TENSOR_DIMS, 1), (_TENSOR_TYPE, _INT64), *named])


# A tensor of integers, of one axis with one place.
_SHAPE = _message([(1, _message([(1, 1)]))])
_TYPE = _message([(1, _message([(1, _INT64), (2, _SHAPE)]))])
_INPUT = _message([(1, _bytes(FIRST_WANTED)), (2, _TYPE)])
