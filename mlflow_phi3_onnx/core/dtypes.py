"""The types of a tensor's numbers, as ONNX, NumPy and safetensors name them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["FLOATS", "SAFETENSORS", "TENSOR_TYPES", "TensorType"]


class TensorType(NamedTuple):
    """A type of numbers.

    Attributes:
        code: Its ``TensorProto.DataType``.
        size: Bytes of one number.
        safetensors: Its name in safetensors files.
        numpy: What NumPy has for it, little-endian; None where it has none.
        precision: What weights of this type are called; ``""`` where they never are.
    """

    code: int
    size: int
    safetensors: str
    numpy: np.dtype[Any] | None = None
    precision: str = ""


_TYPES = (
    TensorType(1, 4, "F32", np.dtype("<f4"), "fp32"),
    TensorType(2, 1, "U8", np.dtype("u1")),
    TensorType(3, 1, "I8", np.dtype("i1")),
    TensorType(10, 2, "F16", np.dtype("<f2"), "fp16"),
    TensorType(11, 8, "F64", np.dtype("<f8")),
    TensorType(16, 2, "BF16", precision="bf16"),
    TensorType(17, 1, "F8_E4M3"),
    TensorType(18, 1, "F8_E4M3FNUZ"),
)

TENSOR_TYPES = {kind.code: kind for kind in _TYPES}
"""The types by ``TensorProto.DataType``."""

SAFETENSORS = {kind.safetensors: kind for kind in _TYPES}
"""The types by their names in safetensors files."""

FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}
"""The types, by code, of KV caches and adapters that both ONNX Runtime and NumPy compute with."""
