"""Every error that this package raises, each with its HTTP status and OpenAI ``type`` and ``code``.

::

    MlflowException (where MLflow is used), click.ClickException
    └── GenAIError                      500  server_error
        ├── InvalidRequestError         400  invalid_request_error
        │   ├── UnsupportedParameterError
        │   ├── ResponseNotFoundError   404  invalid_request_error
        │   └── ContextLengthError
        ├── InvalidModelError           400  invalid_request_error
        ├── SourceError                 400  invalid_request_error
        │   ├── SourceNotFoundError     404  invalid_request_error
        │   ├── SourceAccessError       403  invalid_request_error
        │   └── SourceUnreachableError  503  server_error
        ├── ConversionError             500  server_error
        ├── SaveError                   500  server_error
        ├── DependencyError             500  server_error
        ├── GenerationError             500  server_error
        │   ├── MemoryBudgetError       429  rate_limit_error
        │   ├── CancelledError          499  server_error
        │   ├── GenerationTimeoutError  504  server_error
        │   └── EngineDeadError         503  server_error
        └── DeploymentError             500  server_error

Messages name the field, the kind of the value that came and what is allowed. They never hold a
prompt, a completion or a key, because MLflow sends them to clients and writes them to logs.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from click import ClickException

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CancelledError",
    "ContextLengthError",
    "ConversionError",
    "DependencyError",
    "DeploymentError",
    "EngineDeadError",
    "GenAIError",
    "GenerationError",
    "GenerationTimeoutError",
    "InvalidModelError",
    "InvalidRequestError",
    "MemoryBudgetError",
    "ResponseNotFoundError",
    "SaveError",
    "SourceAccessError",
    "SourceError",
    "SourceNotFoundError",
    "SourceUnreachableError",
    "UnsupportedParameterError",
]


# The HTTP status of each of MLflow's error codes that is used here; MLflow's own are the same.
_STATUS = {
    "CANCELLED": 499,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL_ERROR": 500,
    "INVALID_PARAMETER_VALUE": 400,
    "PERMISSION_DENIED": 403,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "RESOURCE_EXHAUSTED": 429,
    "TEMPORARILY_UNAVAILABLE": 503,
}


class GenAIError(ClickException):
    """The root of this package's errors.

    It is a ``mlflow.exceptions.MlflowException`` too from when a room that uses MLflow is imported,
    as all do that MLflow calls; see ``mlflow_compat``. MLflow's commands show it as one line, and
    end with the exit code 1.

    Args:
        message: What went wrong and what to do about it, without any text of a user's.
        param: The request field or argument at fault, where there is one.
        error_code: One of MLflow's error codes, instead of the class's own.

    Attributes:
        param: The request field or argument at fault.
        error_code: MLflow's error code.
        headers: The HTTP headers that a server answers with beside.
    """

    headers: Mapping[str, str] = MappingProxyType({})
    mlflow_code: ClassVar[str] = "INTERNAL_ERROR"
    openai_type: ClassVar[str] = "server_error"
    openai_code: ClassVar[str | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, error_code: str | None = None
    ) -> None:
        self.param = param
        self.error_code = error_code or self.mlflow_code
        super().__init__(message)

    @property
    def message(self) -> str:  # pyright: ignore[reportGeneralTypeIssues] - Final in click, not in MLflow
        """The message as it was raised.

        MLflow's scoring server assigns a new message that quotes the whole request. That would
        put prompts into responses and logs, so only the first assignment counts.
        """
        return self._message

    @message.setter
    def message(self, value: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] - above
        if "_message" not in self.__dict__:
            self._message = value

    @property
    def status(self) -> int:
        """The HTTP status that a server answers with."""
        return _STATUS.get(self.error_code, 500)

    def to_openai(self) -> dict[str, Any]:
        """The error as the body that OpenAI's clients expect."""
        return {
            "error": {
                "message": self.message,
                "type": self.openai_type,
                "param": self.param,
                "code": self.openai_code,
            }
        }


class InvalidRequestError(GenAIError):
    """A request, a row or an argument that cannot be honoured as it stands."""

    mlflow_code = "INVALID_PARAMETER_VALUE"
    openai_type = "invalid_request_error"


class UnsupportedParameterError(InvalidRequestError):
    """A parameter that this package does not honour, or does not know."""

    openai_code = "unsupported_parameter"


class ResponseNotFoundError(InvalidRequestError):
    """A response that a request goes on from, and that is not kept, or not any more."""

    mlflow_code = "RESOURCE_DOES_NOT_EXIST"
    openai_code = "previous_response_not_found"


class ContextLengthError(InvalidRequestError):
    """A prompt, or a prompt and its completion, that is longer than the model's context length."""

    openai_code = "context_length_exceeded"


class InvalidModelError(GenAIError):
    """A model folder or artifact that is missing a part, damaged, or not what it says it is."""

    mlflow_code = "INVALID_PARAMETER_VALUE"
    openai_type = "invalid_request_error"


class SourceError(GenAIError):
    """A source that no model can be taken from as it was given."""

    mlflow_code = "INVALID_PARAMETER_VALUE"
    openai_type = "invalid_request_error"


class SourceNotFoundError(SourceError):
    """A folder, repository, revision, file or logged model that does not exist."""

    mlflow_code = "RESOURCE_DOES_NOT_EXIST"


class SourceAccessError(SourceError):
    """A repository that needs a token, or that the token at hand may not read."""

    mlflow_code = "PERMISSION_DENIED"


class SourceUnreachableError(SourceError):
    """A hub that cannot be reached, or is not to be, for what is not in the local cache."""

    mlflow_code = "TEMPORARILY_UNAVAILABLE"
    openai_type = "server_error"


class ConversionError(GenAIError):
    """A checkpoint that could not be converted."""


class SaveError(GenAIError):
    """A model cannot be written: the disk is full, or the place cannot be written to."""


class DependencyError(GenAIError):
    """A library that this package needs is missing or too old."""


class GenerationError(GenAIError):
    """The runtime failed while it generated."""


class MemoryBudgetError(GenerationError):
    """A request whose KV cache can never fit in the memory given to it."""

    mlflow_code = "RESOURCE_EXHAUSTED"
    openai_type = "rate_limit_error"
    openai_code = "insufficient_kv_cache"


class CancelledError(GenerationError):
    """Generation that was stopped before its end, by its caller or because the model was closed."""

    mlflow_code = "CANCELLED"


class GenerationTimeoutError(GenerationError):
    """Generation that was stopped because it took longer than its ``timeout``."""

    mlflow_code = "DEADLINE_EXCEEDED"
    openai_code = "timeout"


class EngineDeadError(GenerationError):
    """The engine's worker process ended, by itself or by the system, with requests inside.

    Args:
        message: How it ended, and what to do.
        retry_after: Seconds after which another may answer, where that is known.
    """

    mlflow_code = "TEMPORARILY_UNAVAILABLE"
    openai_code = "engine_dead"

    def __init__(self, message: str, *, retry_after: float | None = None, **more: Any) -> None:
        super().__init__(message, **more)
        self.headers = retry_header(retry_after)


class DeploymentError(GenAIError):
    """A local deployment that could not be started, found, reached or stopped."""


def retry_header(seconds: float | None) -> dict[str, str]:
    """Write when to try again, in whole seconds and at least one; nothing where that is unknown."""
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
