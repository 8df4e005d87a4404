"""A request that was checked and may be run: how it was asked, what it comes to, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow_phi3_onnx.openai.responses import PlainWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.engine.base import Job
    from mlflow_phi3_onnx.errors import GenAIError

    Respond: TypeAlias = Callable[[Sequence[Completion]], Any]

__all__ = ["Asked", "Outcome", "PlannedRequest"]


@dataclass(frozen=True)
class Asked:
    """A request as it came; nothing of it need be what it may be.

    Attributes:
        task: What was asked for.
        fields: The request's fields.
        params: Parameters beside it.
        stream: Whether it is to be answered as a stream.
        model: The model's name.
        model_id: The id of the model in MLflow, where it was logged there.
        came: When it came, by the monotonic clock.
    """

    task: Task
    fields: Mapping[str, Any]
    params: Mapping[str, Any] | None
    stream: bool
    model: str
    model_id: str | None
    came: float


@dataclass(frozen=True)
class PlannedRequest:
    """What a request comes to.

    Attributes:
        jobs: The jobs for the first prompt, one a completion, then those for the second, and so on.
        respond: Puts their completions, in order, into the form that was asked for.
        writer: Makes what writes the same as a stream.
        keeps_errors: Whether an error becomes its response, and is not raised.
        asked: The request, where it is one of a task.
        encoding: When its prompts began to be rendered and tokenized, and when that was done, by
            the monotonic clock.
    """

    jobs: Sequence[Job]
    respond: Respond
    writer: Callable[[], Writer] = PlainWriter
    keeps_errors: bool = False
    asked: Asked | None = None
    encoding: tuple[float, float] | None = None

    @classmethod
    def failed(cls, error: GenAIError) -> PlannedRequest:
        """Make what stands for a request whose response is an error."""
        return cls((), lambda _: error.to_openai(), keeps_errors=True)


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        completions: What was completed: all of it, or of a stream what came until its end.
        response: What its caller got; of a stream, what it would have got as a whole.
        error: Why it failed.
        left: Whether it ended because nobody wanted the rest.
        reading: When its completions began to be put into the response, and when that was done, by
            the monotonic clock; None for a stream, which is written as they come.
    """

    completions: Sequence[Completion] = ()
    response: Any = None
    error: Exception | None = None
    left: bool = False
    reading: tuple[float, float] | None = None
