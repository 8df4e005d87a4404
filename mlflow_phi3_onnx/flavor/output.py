"""What a pyfunc's ``predict`` answers with: objects, text or JSON, and what stands for an error."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.options import read
from mlflow_phi3_onnx.core.tasks import TEXT, Task
from mlflow_phi3_onnx.model.settings import PYFUNC_SETTINGS

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["read_pyfunc_settings", "written"]


def read_pyfunc_settings(params: MutableMapping[str, Any]) -> dict[str, Any]:
    """Take the settings of a pyfunc out of ``params``, checked.

    Raises:
        InvalidRequestError: If one is not what it may be.
    """
    given = {name: params.pop(name) for name in PYFUNC_SETTINGS if name in params}
    return read(PYFUNC_SETTINGS, given, "a setting of a pyfunc", "params", shown=True)


def written(answer: Any, task: Task, output: str) -> Any:
    """Write what a row was answered with.

    Args:
        answer: OpenAI's response, or a text, or an error as a response has it.
        task: The task.
        output: ``openai``, ``text`` or ``json``.
    """
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
