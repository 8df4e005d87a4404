"""Headers of safetensors files (https://huggingface.co/docs/safetensors/index#format)."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_phi3_onnx.core.bounds import MAX_LISTING_BYTES, MAX_RANK, MAX_VALUES
from mlflow_phi3_onnx.core.characters import check_characters
from mlflow_phi3_onnx.core.dtypes import SAFETENSORS
from mlflow_phi3_onnx.core.files import open_file, parse_json_object
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SafeTensor", "read_header"]


class SafeTensor(NamedTuple):
    """A tensor in a safetensors file.

    Attributes:
        dtype: The type of its numbers, as safetensors names it.
        shape: The length of its axes.
        start: Where its bytes begin in the file.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, SafeTensor]:
    """Read what a safetensors file holds, by name, and check that its bytes are that and no more.

    Raises:
        InvalidModelError: If it is no such file, cut short or longer than what it holds.
    """
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, MAX_LISTING_BYTES):
                raise ValueError(length)
            data = file.read(length)
        header = parse_json_object(data, path.name, values=MAX_VALUES)
        check_characters(data, header, lambda _, what: ValueError(what))
        header.pop("__metadata__", None)
        tensors = {name: _tensor(facts, 8 + length) for name, facts in header.items()}
    except (OSError, ValueError, KeyError, TypeError, InvalidModelError) as error:
        raise InvalidModelError(f"{path.name} is not a safetensors file.") from error
    end = 8 + length
    for tensor in sorted(tensors.values(), key=attrgetter("start", "end")):
        if tensor.start != end:
            raise InvalidModelError(f"{path.name} has tensors that overlap, or bytes of none.")
        end = tensor.end
    if size < end:
        raise InvalidModelError(f"{path.name} is cut short: it has {size:,} bytes of {end:,}.")
    if size > end:
        raise InvalidModelError(f"{path.name} has {size:,} bytes, and its tensors end at {end:,}.")
    return tensors


def _tensor(facts: Any, begin: int) -> SafeTensor:
    start, end = facts["data_offsets"]
    dtype, shape = str(facts["dtype"]), tuple(facts["shape"])
    if any(type(value) is not int or value < 0 for value in (start, end, *shape)) or start > end:
        raise ValueError(facts)
    kind = SAFETENSORS.get(dtype)
    if len(shape) > MAX_RANK or (kind and math.prod(shape) * kind.size != end - start):
        raise ValueError(facts)
    return SafeTensor(dtype, shape, begin + start, begin + end)
