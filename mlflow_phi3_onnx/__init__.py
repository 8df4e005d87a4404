"""The MLflow flavor for Phi-3 and every other model that ONNX Runtime GenAI runs.

Importing the package loads neither MLflow nor a native library: each name is imported when it is
first asked for (PEP 562). ONNX Runtime's telemetry is off from here on, unless
``ORT_DISABLE_TELEMETRY`` is set already.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx._version import __version__

if TYPE_CHECKING:
    from mlflow_phi3_onnx.demo import demo_model_path
    from mlflow_phi3_onnx.errors import (
        CancelledError,
        ContextLengthError,
        ConversionError,
        DependencyError,
        DeploymentError,
        EngineDeadError,
        GenAIError,
        GenerationError,
        GenerationTimeoutError,
        InvalidModelError,
        InvalidRequestError,
        MemoryBudgetError,
        ResponseNotFoundError,
        SaveError,
        SourceAccessError,
        SourceError,
        SourceNotFoundError,
        SourceUnreachableError,
        UnsupportedParameterError,
    )
    from mlflow_phi3_onnx.evaluation.compare import Comparison, compare
    from mlflow_phi3_onnx.evaluation.quantization import quantization_report
    from mlflow_phi3_onnx.evaluation.quantization_result import QuantizationReport
    from mlflow_phi3_onnx.flavor.functions import (
        load_model,
        log_model,
        persist_pretrained_model,
        save_model,
    )
    from mlflow_phi3_onnx.flavor.pyfunc import FLAVOR_NAME, _load_pyfunc, _PyFuncWrapper
    from mlflow_phi3_onnx.flavor.requirements import (
        get_default_conda_env,
        get_default_pip_requirements,
    )
    from mlflow_phi3_onnx.model.native import GenAIModel
    from mlflow_phi3_onnx.tracing.autolog import autolog

__all__ = [
    "FLAVOR_NAME",
    "CancelledError",
    "Comparison",
    "ContextLengthError",
    "ConversionError",
    "DependencyError",
    "DeploymentError",
    "EngineDeadError",
    "GenAIError",
    "GenAIModel",
    "GenerationError",
    "GenerationTimeoutError",
    "InvalidModelError",
    "InvalidRequestError",
    "MemoryBudgetError",
    "QuantizationReport",
    "ResponseNotFoundError",
    "SaveError",
    "SourceAccessError",
    "SourceError",
    "SourceNotFoundError",
    "SourceUnreachableError",
    "UnsupportedParameterError",
    "_PyFuncWrapper",
    "__version__",
    "_load_pyfunc",
    "autolog",
    "compare",
    "demo_model_path",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "persist_pretrained_model",
    "quantization_report",
    "save_model",
]

_ERRORS = "errors"

# Where the names are that are no errors.
_HOMES = {
    "Comparison": "evaluation.compare",
    "FLAVOR_NAME": "flavor.pyfunc",
    "GenAIModel": "model.native",
    "QuantizationReport": "evaluation.quantization_result",
    "_PyFuncWrapper": "flavor.pyfunc",
    "_load_pyfunc": "flavor.pyfunc",
    "autolog": "tracing.autolog",
    "compare": "evaluation.compare",
    "demo_model_path": "demo",
    "persist_pretrained_model": "flavor.functions",
    "get_default_conda_env": "flavor.requirements",
    "get_default_pip_requirements": "flavor.requirements",
    "load_model": "flavor.functions",
    "log_model": "flavor.functions",
    "quantization_report": "evaluation.quantization",
    "save_model": "flavor.functions",
}

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == _ERRORS:
        return importlib.import_module(f"{__name__}.{_ERRORS}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, _ERRORS)}"), name)


def __dir__() -> list[str]:
    return [*__all__, _ERRORS]
