"""What is the same for every call of a model, in a thread or in an event loop.

A call is planned before anything runs: its request is checked, its prompts are rendered and
tokenized, its grammar is compiled. Then the engine runs its jobs, and what they answer is put into
the form that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_phi3_onnx.core.request import Result
from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError
from mlflow_phi3_onnx.openai import responses
from mlflow_phi3_onnx.openai.parameters import CHAT, COMPLETIONS, Task
from mlflow_phi3_onnx.openai.parse import Asked, parse_request
from mlflow_phi3_onnx.openai.stream import ChatWriter, PlainWriter, TextWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping, Sequence

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.engine.base import Job
    from mlflow_phi3_onnx.model.planning import Plan, Planner
    from mlflow_phi3_onnx.openai.tools.formats.base import ToolFormat
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Call", "Calls", "Question"]


class Question(Protocol):
    """Jobs for the engine, and what their answers come to."""

    @property
    def jobs(self) -> Sequence[Job]:
        """What the engine is to run."""
        ...

    def answer(self, completions: Sequence[Completion]) -> Any:
        """Put the jobs' answers, in order, into the form that was asked for."""
        ...


@dataclass(frozen=True)
class Call:
    """A planned request.

    Attributes:
        task: What is asked for.
        asked: The checked request.
        plan: Its jobs and prompts.
        model: The name that the answer carries.
        silent: The ids of tokens that are left out of an answer's text.
    """

    task: Task
    asked: Asked
    plan: Plan
    model: str
    silent: Container[int]

    @property
    def jobs(self) -> Sequence[Job]:
        """What the engine is to run."""
        return self.plan.jobs

    def answer(self, completions: Sequence[Completion]) -> Any:
        """Build an OpenAI object, or for ``text-generation`` the text."""
        result = Result(tuple(completions), self.plan.prompts)
        if self.task == CHAT:
            return responses.chat_response(self.asked, result, self.model)
        if self.task == COMPLETIONS:
            return responses.text_response(self.asked, result, self.model, self.silent)
        return completions[0].text

    def writer(self) -> Writer:
        """Make what writes the answer in pieces."""
        if self.task == CHAT:
            return ChatWriter(self.asked, self.plan.prompts, self.model)
        if self.task == COMPLETIONS:
            return TextWriter(self.asked, self.plan.prompts, self.model, self.silent)
        return PlainWriter()


class Calls:
    """Plans calls of one model.

    Args:
        folder: The model folder.
        tokenizer: Its tokenizer.
        planner: Its planner.
        config: Checked generation parameters of the saved ``model_config``.
        adapters: The names of the model's adapters.
        tool_format: How the model writes tool calls, where that is known.
    """

    def __init__(
        self,
        folder: ModelFolder,
        tokenizer: PromptTokenizer,
        planner: Planner,
        config: Mapping[str, Any],
        adapters: Collection[str],
        tool_format: ToolFormat | None,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._planner = planner
        self._config = config
        self._adapters = adapters
        self._tool_format = tool_format

    def plan_each(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
    ) -> list[Call]:
        """Plan several requests whose answers are wanted as a whole.

        Raises:
            InvalidRequestError: If one is not what it may be; with several requests, the message
                says which.
        """
        calls: list[Call] = []
        for number, fields in enumerate(requests):
            try:
                calls.append(self._plan(task, fields, params, stream=False))
            except GenAIError as error:
                if len(requests) == 1:
                    raise
                message = f"row {number}: {error.message}"
                raise type(error)(message, param=error.param) from error
        return calls

    def plan_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> Call:
        """Plan a request whose answer is wanted in pieces.

        Raises:
            InvalidRequestError: If it is not what it may be.
        """
        return self._plan(task, fields, params, stream=True)

    def _plan(
        self,
        task: Task,
        fields: Mapping[str, Any],
        params: Mapping[str, Any] | None,
        *,
        stream: bool,
    ) -> Call:
        asked = parse_request(
            fields,
            task,
            params=params,
            config=self._config,
            model_defaults=self._folder.search,
            adapters=self._adapters,
            own_name=self._folder.model_type,
            tool_format=self._tool_format,
        )
        if asked.stream is not None and asked.stream != stream:
            raise InvalidRequestError(
                "stream is false, but this call answers in pieces. Use predict, or leave stream"
                " out."
                if stream
                else "stream is true, but this call answers as a whole. Use predict_stream or one"
                " of the stream_ methods, or leave stream out.",
                param="stream",
            )
        plan = self._planner.plan(asked)
        name = asked.request.options.adapter or self._folder.model_type
        return Call(task, asked, plan, name, self._tokenizer.control_ids)
