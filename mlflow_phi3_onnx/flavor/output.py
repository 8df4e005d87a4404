"""What a pyfunc's ``predict`` answers with: objects, text or JSON, and what stands for an error."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_phi3_onnx.core.options import read
from mlflow_phi3_onnx.core.tasks import TEXT, Task
from mlflow_phi3_onnx.model.settings import PYFUNC_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    from mlflow_phi3_onnx.model.settings import OnError

__all__ = ["Answering", "read_pyfunc_settings"]


def read_pyfunc_settings(params: MutableMapping[str, Any]) -> dict[str, Any]:
    """Take the settings of a pyfunc out of ``params``, checked.

    Raises:
        InvalidRequestError: If one is not what it may be.
    """
    given = {name: params.pop(name) for name in PYFUNC_SETTINGS if name in params}
    return read(PYFUNC_SETTINGS, given, "a setting of a pyfunc", "params", shown=True)


class Answering(NamedTuple):
    """How a pyfunc answers: each field is one of its settings."""

    output: str
    on_error: OnError

    @classmethod
    def chosen(
        cls, saved: Mapping[str, Any], params: MutableMapping[str, Any] | None = None
    ) -> Answering:
        """Settle it: what is in ``params``, and is taken out of them, comes before what was saved.

        Raises:
            InvalidRequestError: If a setting is not what it may be.
        """
        defaults = {name: option.default for name, option in PYFUNC_SETTINGS.items()}
        return cls(
            **{**defaults, **saved, **read_pyfunc_settings({} if params is None else params)}
        )

    def written(self, answers: Iterable[Any], task: Task) -> list[Any]:
        """Write what the rows were answered with.

        Args:
            answers: OpenAI's responses, or texts, or errors as a response has them.
            task: The task.
        """
        return [_written(answer, task, self.output) for answer in answers]


def _written(answer: Any, task: Task, output: str) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        return _no_answer(answer) if task != TEXT and output == "openai" else json.dumps(answer)
    if isinstance(answer, str) or output == "openai":
        return answer
    if output == "json":
        return json.dumps(answer, ensure_ascii=False)
    first = answer["choices"][0]
    return first["text"] if "text" in first else first["message"]["content"] or ""


def _no_answer(error: dict[str, Any]) -> dict[str, Any]:
    """Give an error the fields that a response has: Spark's structs have no missing ones."""
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
    head = {"id": f"error-{uuid.uuid4().hex}", "object": "error", "created": int(time.time())}
    return {**head, "model": "", "choices": [], "usage": counts, **error}
