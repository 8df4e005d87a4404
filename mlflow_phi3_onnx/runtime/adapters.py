"""Files of LoRA adapters, read and written by ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.runtime.ort import import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["read_adapter", "write_adapter"]

_NEEDED_FOR = (
    "and making an adapter's file needs it. Install onnxruntime-genai, which brings it along"
)


def read_adapter(path: Path) -> dict[str, NDArray[Any]]:
    """Read the parameters of an ``.onnx_adapter`` file, by name.

    Args:
        path: The file, which has been found whole.

    Raises:
        DependencyError: If ONNX Runtime, which onnxruntime-genai brings along, is missing.
        InvalidModelError: If it cannot read the file.
    """
    onnxruntime = import_onnxruntime(_NEEDED_FOR)
    try:
        adapter = onnxruntime.AdapterFormat.read_adapter(str(path))
    except Exception as error:
        raise InvalidModelError(
            f"adapters: ONNX Runtime cannot read {path.name} ({type(error).__name__})."
        ) from error
    # What numpy() returns lies in the file's mapping, which ends with the adapter.
    return {name: value.numpy().copy() for name, value in adapter.get_parameters().items()}


def write_adapter(path: Path, parameters: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.onnx_adapter`` file.

    Args:
        path: The file.
        parameters: Values of the graph's inputs, by name.

    Raises:
        DependencyError: If ONNX Runtime, which onnxruntime-genai brings along, is missing.
    """
    onnxruntime = import_onnxruntime(_NEEDED_FOR)
    adapter = onnxruntime.AdapterFormat()
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    adapter.set_parameters({name: value(array) for name, array in parameters.items()})
    adapter.export_adapter(str(path))
