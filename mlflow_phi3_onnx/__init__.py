"""The MLflow flavor for Phi-3 and every other model that ONNX Runtime GenAI runs."""

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.demo import demo_model_path
from mlflow_phi3_onnx.errors import (
    CancelledError,
    ContextLengthError,
    ConversionError,
    DependencyError,
    DeploymentError,
    GenAIError,
    GenerationError,
    GenerationTimeoutError,
    InvalidModelError,
    InvalidRequestError,
    MemoryBudgetError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnsupportedParameterError,
)
from mlflow_phi3_onnx.evaluation.compare import Comparison, compare
from mlflow_phi3_onnx.flavor.functions import (
    get_default_conda_env,
    get_default_pip_requirements,
    load_model,
    log_model,
    save_model,
)
from mlflow_phi3_onnx.flavor.persist import persist_pretrained_model
from mlflow_phi3_onnx.flavor.pyfunc import FLAVOR_NAME, _load_pyfunc, _PyFuncWrapper
from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = [
    "FLAVOR_NAME",
    "CancelledError",
    "Comparison",
    "ContextLengthError",
    "ConversionError",
    "DependencyError",
    "DeploymentError",
    "GenAIError",
    "GenAIModel",
    "GenerationError",
    "GenerationTimeoutError",
    "InvalidModelError",
    "InvalidRequestError",
    "MemoryBudgetError",
    "SourceAccessError",
    "SourceError",
    "SourceNotFoundError",
    "SourceUnreachableError",
    "UnsupportedParameterError",
    "_PyFuncWrapper",
    "__version__",
    "_load_pyfunc",
    "compare",
    "demo_model_path",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "persist_pretrained_model",
    "save_model",
]
