"""What the protocol-buffer library reads of a graph is what is read here, or it is refused."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from google.protobuf.message import DecodeError

from mlflow_phi3_onnx import InvalidModelError
from mlflow_phi3_onnx.artifact.onnx.graph import read_graph
from tests.artifact.test_bounds import varint
from tests.support.mutations import mutate_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message

Part = bytes | tuple[int, list["Part"]]

_NODES = 4
_CHANGED = 0.02

ODD = (
    *(
        varint(number << 3) + varint(value)
        for number in (1, 2, 3, 7, 13)
        for value in (1, 2**32 + 1)
    ),
    *(varint(number << 3 | 2) + varint(1) + b"\1" for number in (1, 2, 4, 7, 8, 13)),
    *(varint(number << 3 | 5) + b"\x0a\x01x\x10" for number in (1, 2, 5, 7, 13)),
    *(varint(number << 3 | 1) + b"\x0a\x01x\x12\x01y\x10\x01" for number in (1, 2, 5, 7, 13)),
    varint(3 << 3 | 3) + varint(3 << 3 | 4),
    b"\x00\x00",
    b"\x88\x80\x80\x80\x00\x01",
    b"\x08" + b"\xff" * 9 + b"\x01",
)
"""Fields of other types than the ones that are known, and numbers that are written oddly."""


def messages(message: Any) -> Iterator[Any]:
    """Yield a message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from messages(inner)


def facts(model: Any) -> tuple[Any, ...]:
    """What the library has read: what is weighed in :func:`read_graph`."""
    found = list(messages(model))
    tensors = [message for message in found if isinstance(message, onnx.TensorProto)]
    nodes = [message for message in found if isinstance(message, onnx.NodeProto)]
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in tensors]
    values = (model.graph.input, model.graph.output)
    return (
        {entry["location"] for entry in entries if "location" in entry},
        Counter(node.op_type for node in nodes),
        *(
            {value.name: value.type.tensor_type.elem_type % 2**32 for value in all_}
            for all_ in values
        ),
        {
            value.name: tuple(
                axis.dim_param or axis.dim_value % 2**64 if axis.WhichOneof("value") else ""
                for axis in value.type.tensor_type.shape.dim
            )
            for value in model.graph.input
        },
        {tensor.name for tensor in model.graph.initializer}
        & {value.name for value in model.graph.input},
    )


def parted(message: Message) -> list[Part]:
    """Take a message apart: its messages with their number, what else it has as it is written."""
    parts: list[Part] = []
    for field, value in message.ListFields():
        if field.message_type is None:
            alone = type(message)()
            alone.ParseFromString(message.SerializeToString())
            for other, _ in message.ListFields():
                if other.number != field.number:
                    alone.ClearField(other.name)
            parts.append(alone.SerializeToString())
        else:
            parts += [
                (field.number, parted(one)) for one in (value if field.is_repeated else [value])
            ]
    return parts


def changed(parts: list[Part], rng: random.Random) -> bytes:
    """Write a message with some fields changed, left out, twice, or in another order."""
    written = []
    for part in parts:
        if isinstance(part, bytes):
            written.append(part)
        else:
            inner = changed(part[1], rng)
            written.append(varint(part[0] << 3 | 2) + varint(len(inner)) + inner)
    if rng.random() < _CHANGED:
        place = rng.randrange(len(written) + 1)
        match rng.randrange(5):
            case 0:
                written[place:place] = rng.choices(written or [b""])
            case 1 | 2:
                written[place:place] = rng.choices(ODD)
            case 3:
                written[place : place + 1] = [
                    mutate_bytes(b"".join(written[place : place + 1]), rng)
                ]
            case _:
                rng.shuffle(written)
    return b"".join(written)


def compare(demo: Path, file: Path, seeds: range) -> int:
    """Compare what both read of a changed graph; return how many both take."""
    model = onnx.load(demo / "model.onnx", load_external_data=False)
    graph = model.graph
    del graph.node[_NODES:], graph.initializer[_NODES:], graph.input[_NODES:]
    del graph.output[_NODES:], graph.value_info[:]
    for tensor in graph.initializer:
        tensor.ClearField("raw_data")
    parts = parted(model)
    both = 0
    for seed in seeds:
        content = changed(parts, random.Random(seed))  # noqa: S311 - it picks changes
        file.write_bytes(content)
        try:
            theirs = onnx.ModelProto.FromString(content)
            ours = read_graph(file)
        except (DecodeError, InvalidModelError):
            continue
        both += 1
        read = (set(ours.external), Counter(ours.operators), ours.inputs, ours.outputs)
        assert (*read, ours.shapes, ours.optional) == facts(theirs), seed
    return both


def test_what_both_take_is_the_same(demo: Path, tmp_path: Path) -> None:
    assert compare(demo, tmp_path / "model.onnx", range(600)) > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_both_take_is_the_same_many_times(demo: Path, tmp_path: Path) -> None:
    assert compare(demo, tmp_path / "model.onnx", range(10_000, 30_000)) > 3_000
