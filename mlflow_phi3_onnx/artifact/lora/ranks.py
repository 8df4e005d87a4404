"""The ranks of adapters: the same in all layers, where the graph has one name for it.

Olive calls the open axis of every layer ``lora_r``. ONNX Runtime takes that at its word when it
plans its memory, so layers of different ranks fail, and so does an adapter of some of the layers:
the others have their default, of rank 0. Zeros make the ranks alike, and change no product.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.core.dtypes import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.artifact.onnx.graph import GraphFacts

__all__ = ["filled", "halves", "is_even", "plain_layer", "unmatched"]

_INPUT = re.compile(r"(.+)\.lora_([AB])(?:\.default|\.MatMul)*\.weight")


def halves(names: Iterable[str]) -> dict[tuple[str, str], str]:
    """Find the names of both halves of each layer, by layer and half (``A`` or ``B``).

    The layers are named as PEFT does, but that ``self_attn`` is ``attn``.
    """
    matches = [_INPUT.fullmatch(name) for name in names]
    return {(plain_layer(match[1]), match[2]): match[0] for match in matches if match}


def plain_layer(layer: str) -> str:
    """Name a layer as the builder does."""
    return layer.replace(".self_attn.", ".attn.")


def unmatched(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Name a layer whose halves are not both there, or have different ranks, if there is one."""
    found = halves(name for name, shape in shapes.items() if len(shape) == 2)
    for layer, _ in found:
        pair = [shapes[found[layer, half]] for half in "AB" if (layer, half) in found]
        if len(pair) != 2 or pair[0][1] != pair[1][0]:
            return layer
    return None


def is_even(shapes: Mapping[str, tuple[int, ...]], graph: GraphFacts) -> bool:
    """Whether what the graph gives one name has one length, in all of an adapter's parameters."""
    return all(shapes.get(name) == shape for name, shape in _even_shapes(shapes, graph).items())


def filled(parameters: Mapping[str, NDArray[Any]], graph: GraphFacts) -> dict[str, NDArray[Any]]:
    """Fill an adapter up with zeros, so that it is even."""
    result = dict(parameters)
    shapes = {name: values.shape for name, values in parameters.items()}
    for name, shape in _even_shapes(shapes, graph).items():
        result[name] = np.zeros(shape, dtype=FLOATS[graph.inputs[name]])
        if name in parameters:
            result[name][tuple(map(slice, shapes[name]))] = parameters[name]
    return result


def _even_shapes(
    shapes: Mapping[str, tuple[int, ...]], graph: GraphFacts
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the inputs with an open axis must have together, by name."""
    axes = {
        name: graph.shapes[name]
        for name in halves(graph.optional).values()
        if graph.inputs[name] in FLOATS
    }
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        for axis, length in zip(axes.get(name, ()), shape, strict=False):
            if isinstance(axis, str) and axis:
                lengths[axis] = max(lengths.get(axis, 0), length)
    return {
        name: tuple(axis if isinstance(axis, int) else lengths[axis] for axis in named)
        for name, named in axes.items()
        if any(isinstance(axis, str) for axis in named)
        and all(isinstance(axis, int) or axis in lengths for axis in named)
    }
