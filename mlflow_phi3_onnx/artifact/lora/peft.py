"""Adapters as PEFT saves them, turned into parameters for a graph's inputs.

PEFT keeps ``lora_A`` as ``(rank, in)`` and ``lora_B`` as ``(out, rank)``, and scales their product;
a graph multiplies by ``(in, rank)`` and ``(rank, out)``, with the scale inside of ``lora_B``, as
Olive and onnxruntime-genai's builder write it. Both leave PEFT's names as they are, but for
``self_attn``, which the builder calls ``attn``.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.artifact.lora.ranks import halves, plain_layer
from mlflow_phi3_onnx.artifact.safetensors import read_header
from mlflow_phi3_onnx.core.checks import number, string
from mlflow_phi3_onnx.core.document import Document
from mlflow_phi3_onnx.core.dtypes import FLOATS, SAFETENSORS
from mlflow_phi3_onnx.core.files import read_json_object
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.artifact.onnx.graph import GraphFacts
    from mlflow_phi3_onnx.artifact.safetensors import SafeTensor

__all__ = ["PEFT_CONFIG", "PEFT_WEIGHTS", "convert_peft"]

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

_ALPHA = number(-1e6, 1e6)
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")

# Layers that a checkpoint has as one and the builder's graph, where it has adapters, as several.
_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@np.errstate(over="ignore", invalid="ignore")  # what comes of it is refused
def convert_peft(folder: Path, graph: GraphFacts, name: str) -> dict[str, NDArray[Any]]:
    """Turn a PEFT folder into an adapter's parameters.

    Args:
        folder: The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.
        graph: The graph that it is for.
        name: The adapter's name, for messages.

    Returns:
        An array for an input of the graph, by the input's name.

    Raises:
        InvalidModelError: If it is no whole LoRA adapter, has more than LoRA weights, or has a
            layer that the graph has no inputs for, or numbers that are not finite.
    """
    named = halves(graph.optional).items()
    inputs = {key: target for key, target in named if graph.inputs[target] in FLOATS}
    if not inputs:
        raise InvalidModelError(
            f"adapters: the folder of {name!r} cannot be converted, because the graph's inputs for"
            f" adapters, such as {min(graph.optional)}, are not lora_A and lora_B in float. Give an"
            " .onnx_adapter file that was made as the graph was."
        )
    scale, rooted = _read_config(folder, name)
    parameters: dict[str, NDArray[Any]] = {}
    for layer, (a, b) in _layers(_read_weights(folder / PEFT_WEIGHTS, name), name).items():
        rank = a.shape[0]
        scaled = b * np.float32(scale / (math.sqrt(rank) if rooted else rank))
        for part, share in _parts(layer, scaled, inputs, graph, name).items():
            for half, values in (("A", a), ("B", share)):
                target = inputs[part, half]
                dtype = FLOATS[graph.inputs[target]]
                parameters[target] = np.ascontiguousarray(values.T, dtype=dtype)
                if not np.isfinite(parameters[target]).all():
                    raise InvalidModelError(
                        f"adapters: {name!r} has numbers in {layer} that are not finite, or too"
                        f" large for {dtype} once they are scaled."
                    )
    return parameters


def _read_config(folder: Path, name: str) -> tuple[float, bool]:
    """Return alpha, and whether it is divided by the rank's root, not by the rank."""
    try:
        document = Document(read_json_object(folder / PEFT_CONFIG), PEFT_CONFIG)
        kind, alpha = document.read("peft_type", string), document.read("lora_alpha", _ALPHA)
    except InvalidModelError as error:
        raise InvalidModelError(
            f"adapters: the folder of {name!r} is not what PEFT writes for a LoRA adapter."
            f" {error.message}"
        ) from error
    config = document.values
    more = [key for key in ("use_dora", "modules_to_save", "alpha_pattern") if config.get(key)]
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        more.append("bias")
    if kind != "LORA" or more:
        what = f"it has {', '.join(more)}" if kind == "LORA" else "its peft_type is another"
        raise InvalidModelError(
            f"adapters: {name!r} is not a plain LoRA adapter ({what}), so it cannot be converted."
            " Merge it into its base model, and save that."
        )
    return alpha, bool(config.get("use_rslora"))


def _read_weights(path: Path, name: str) -> dict[str, NDArray[np.float32]]:
    """Read a safetensors file as float32."""
    try:
        header = read_header(path)
        data = path.read_bytes()
        return {tensor: _tensor(data, facts) for tensor, facts in header.items()}
    except (OSError, ValueError, KeyError, InvalidModelError) as error:
        why = f" {error.message}" if isinstance(error, InvalidModelError) else ""
        raise InvalidModelError(
            f"adapters: {name!r} has no whole {PEFT_WEIGHTS} of float numbers.{why}"
        ) from error


def _tensor(data: bytes, facts: SafeTensor) -> NDArray[np.float32]:
    bfloat16 = facts.dtype == "BF16"  # the upper half of a float32
    form = np.dtype("<u2") if bfloat16 else SAFETENSORS[facts.dtype].numpy
    if form is None or not (bfloat16 or np.issubdtype(form, np.floating)):
        raise ValueError(facts.dtype)
    values = np.frombuffer(memoryview(data)[facts.start : facts.end], form)
    if bfloat16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(facts.shape)


def _layers(
    weights: Mapping[str, NDArray[np.float32]], name: str
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Put the two halves of each layer together."""
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for tensor, values in weights.items():
        match = _NAME.fullmatch(tensor)
        if match is None or values.ndim != 2 or not values.size:
            raise InvalidModelError(
                f"adapters: {name!r} holds {tensor}, which is no weight of a LoRA adapter. Only"
                " lora_A and lora_B of linear layers can be converted."
            )
        halves.setdefault(match[1], {})[match[2]] = values
    for layer, pair in halves.items():
        if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise InvalidModelError(
                f"adapters: lora_A and lora_B of {layer}, in {name!r}, do not belong together."
            )
    return {layer: (pair["A"], pair["B"]) for layer, pair in halves.items()}


def _parts(
    layer: str,
    b: NDArray[np.float32],
    inputs: Mapping[tuple[str, str], str],
    graph: GraphFacts,
    name: str,
) -> dict[str, NDArray[np.float32]]:
    """Share a lora_B out among the layers that the graph has for its layer: mostly one."""
    before, _, last = plain_layer(layer).rpartition(".")
    for parts in ((last,), _PACKED.get(last, ())):
        names = [f"{before}.{part}" for part in parts]
        if not names or not all((part, half) in inputs for part in names for half in "AB"):
            continue
        if len(names) == 1:
            return {names[0]: b}
        widths = [graph.shapes[inputs[part, "B"]][-1] for part in names]
        known = [width for width in widths if isinstance(width, int)]
        if len(known) == len(parts) and sum(known) == len(b):
            ends = np.cumsum(known)[:-1].tolist()
            return dict(zip(names, np.split(b, ends), strict=True))
    raise InvalidModelError(
        f"adapters: {name!r} changes {layer}, and the graph has no inputs for that. Build the graph"
        " for an adapter of the same layers."
    )
