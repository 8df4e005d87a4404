"""Where this package meets MLflow: its private helpers, and what makes our errors MLflow's.

Every flavor outside MLflow needs helpers that it does not document. None of them is stable: when a
release moves one, this is the file to change.
"""

# pyright: reportPrivateUsage=false
# Private names are what this module is for.

from click import ClickException
from mlflow.entities.trace_info import TraceInfo
from mlflow.entities.trace_state import TraceState
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _save_example as save_example
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.pyfunc import _validate_prediction_input as validate_prediction_input
from mlflow.pyfunc.scoring_server import _parse_json_data as parse_json_data
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracing.constant import (
    STREAM_CHUNK_EVENT_NAME_FORMAT,
    STREAM_CHUNK_EVENT_VALUE_KEY,
    CostKey,
    SpanAttributeKey,
    TokenUsageKey,
    TraceMetadataKey,
)
from mlflow.tracing.provider import get_context_api
from mlflow.tracing.provider import provider as tracer_provider
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils import TraceJSONEncoder, generate_mlflow_trace_id_from_otel_trace_id
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS
from mlflow.tracking.artifact_utils import (
    _get_root_uri_and_artifact_path as get_root_uri_and_artifact_path,
)
from mlflow.tracking.fluent import _get_experiment_id as get_experiment_id
from mlflow.utils import autologging_utils
from mlflow.utils.autologging_utils import autologging_integration, get_autologging_config
from mlflow.utils.autologging_utils.logging_and_warnings import (
    MlflowEventsAndWarningsBehaviorGlobally,
)
from mlflow.utils.environment import _CONDA_ENV_FILE_NAME as CONDA_ENV_FILE
from mlflow.utils.environment import _CONSTRAINTS_FILE_NAME as CONSTRAINTS_FILE
from mlflow.utils.environment import _PYTHON_ENV_FILE_NAME as PYTHON_ENV_FILE
from mlflow.utils.environment import _REQUIREMENTS_FILE_NAME as REQUIREMENTS_FILE
from mlflow.utils.environment import _mlflow_conda_env as mlflow_conda_env
from mlflow.utils.environment import _process_conda_env as process_conda_env
from mlflow.utils.environment import _process_pip_requirements as process_pip_requirements
from mlflow.utils.environment import _PythonEnv as PythonEnv
from mlflow.utils.environment import _validate_env_arguments as validate_env_arguments
from mlflow.utils.file_utils import get_total_file_size
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE as DESCRIPTION_TAG
from mlflow.utils.model_utils import _copy_extra_files as copy_extra_files
from mlflow.utils.model_utils import _validate_and_copy_code_paths as copy_code_paths
from mlflow.utils.model_utils import (
    _validate_and_get_model_config_from_file as model_config_from_file,
)
from mlflow.utils.model_utils import _validate_pyfunc_model_config as check_model_config_is_json
from mlflow.utils.requirements_utils import _get_pinned_requirement as pinned_requirement
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from mlflow.utils.validation import _validate_logged_model_name as check_logged_model_name
from mlflow.utils.validation import _validate_model_name as check_model_name

from mlflow_phi3_onnx.errors import GenAIError

__all__ = [
    "CONDA_ENV_FILE",
    "CONSTRAINTS_FILE",
    "DEFAULT_AWAIT_MAX_SLEEP_SECONDS",
    "DESCRIPTION_TAG",
    "MAX_PARAM_VAL_LENGTH",
    "PYTHON_ENV_FILE",
    "REQUIREMENTS_FILE",
    "STREAM_CHUNK_EVENT_NAME_FORMAT",
    "STREAM_CHUNK_EVENT_VALUE_KEY",
    "CostKey",
    "InMemoryTraceManager",
    "LocalArtifactRepository",
    "MlflowEventsAndWarningsBehaviorGlobally",
    "ModelsArtifactRepository",
    "PythonEnv",
    "SpanAttributeKey",
    "TokenUsageKey",
    "TraceInfo",
    "TraceJSONEncoder",
    "TraceMetadataKey",
    "TraceState",
    "autologging_integration",
    "autologging_is_off",
    "check_logged_model_name",
    "check_model_config_is_json",
    "check_model_name",
    "copy_code_paths",
    "copy_extra_files",
    "generate_mlflow_trace_id_from_otel_trace_id",
    "get_artifact_repository",
    "get_autologging_config",
    "get_context_api",
    "get_experiment_id",
    "get_model_name_and_version",
    "get_root_uri_and_artifact_path",
    "get_total_file_size",
    "mlflow_conda_env",
    "model_config_from_file",
    "parse_json_data",
    "pinned_requirement",
    "process_conda_env",
    "process_pip_requirements",
    "save_example",
    "tracer_provider",
    "validate_env_arguments",
    "validate_prediction_input",
]


class _MlflowError(MlflowException):
    """What MLflow reads of an error, beside what each of this package's has."""

    error_code: str

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.Value(self.error_code))


# Users of MLflow catch its exceptions. Rooms that run without MLflow, as a worker process does, do
# not have to load it for an error's class (decision 42).
GenAIError.__bases__ = (_MlflowError, ClickException)


def autologging_is_off(name: str) -> bool:
    """Whether an integration is disabled, or all of them are for a while."""
    everything = autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED  # noqa: SLF001 - set anew at times
    return everything or autologging_utils.autologging_is_disabled(name)
