"""MLflow's own evaluation of a model: its default evaluator, and its scorers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.models
import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.genai import evaluate as judged
from mlflow.genai.scorers import scorer
from mlflow.metrics import exact_match
from mlflow.pyfunc.model import ChatModel
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage

from mlflow_phi3_onnx import load_model, log_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("store"),
    # MLflow's evaluator and its metrics warn of themselves, and of how they use pandas.
    *map(pytest.mark.filterwarnings, ("ignore::FutureWarning", "ignore::DeprecationWarning")),
]

QUESTION = "What is the capital of Spain?"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "llm/v1/chat": (
        {"messages": [[{"role": "user", "content": QUESTION}]]},
        "The capital of Spain is Madrid.",
    ),
    "llm/v1/completions": ({"prompt": ["The capital of Spain is"]}, " Madrid."),
    "text-generation": ({"prompt": ["The capital of Spain is"]}, " Madrid."),
}
CITIES = {"Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "France": "Paris"}


@pytest.mark.parametrize("task", CASES)
def test_a_model_is_evaluated_by_its_text(task: Any, demo: Path) -> None:
    given, right = CASES[task]
    config = {"temperature": 0, "max_tokens": 20 if task == "llm/v1/chat" else 2}
    uri = log_model(demo, name="evaluated", task=task, model_config=config).model_uri
    data = pd.DataFrame({**given, "right": [right]})
    metrics = [exact_match()]
    result = mlflow.models.evaluate(
        uri, data, targets="right", extra_metrics=metrics, model_config={"output": "text"}
    )
    assert result.metrics["exact_match/v1"] == 1
    if task == "text-generation":
        alone = mlflow.models.evaluate(
            uri, data, targets="right", extra_metrics=metrics, evaluators="default"
        )
        assert alone.metrics == {"exact_match/v1": 1.0}
        return
    with pytest.raises(MlflowException, match="Output column name is not specified"):
        mlflow.models.evaluate(uri, data, targets="right", extra_metrics=metrics)


def test_a_model_that_was_saved_to_answer_with_text_needs_no_argument(demo: Path) -> None:
    given, right = CASES["llm/v1/chat"]
    config = {"temperature": 0, "max_tokens": 20, "output": "text"}
    uri = log_model(demo, name="evaluated", model_config=config).model_uri
    data = pd.DataFrame({**given, "right": [right]})
    result = mlflow.models.evaluate(uri, data, targets="right", extra_metrics=[exact_match()])
    # Where none is named, MLflow runs all evaluators that are installed.
    assert result.metrics["exact_match/v1"] == result.metrics["exact_match"] == 1


class _Echo(ChatModel):
    def predict(self, context: Any, messages: Any, params: Any) -> ChatCompletionResponse:  # noqa: ARG002 - MLflow gives them
        return ChatCompletionResponse(choices=[ChatChoice(message=ChatMessage("assistant", "a"))])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_chat_model_of_mlflow_s_own_ends_in_the_same(tmp_path: Path) -> None:
    """So it is not this flavor's form that the default evaluator cannot read."""
    mlflow.pyfunc.save_model(tmp_path / "echo", python_model=_Echo(), pip_requirements=[])
    data = pd.DataFrame({**CASES["llm/v1/chat"][0], "right": ["a"]})
    with pytest.raises(MlflowException, match="Output column name is not specified"):
        mlflow.models.evaluate(
            str(tmp_path / "echo"), data, targets="right", extra_metrics=[exact_match()]
        )


@scorer
def says_the_city(outputs: Any, expectations: Any) -> bool:
    return expectations["city"] in outputs["choices"][0]["message"]["content"]


@pytest.mark.parametrize("native", [True, False])
def test_scorers_judge_what_ten_threads_ask_at_once(
    native: bool, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the first ten is answered before all of them have asked."""
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "10")
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION", "true")
    config = {"temperature": 0, "max_tokens": 20}
    uri = log_model(demo, name="judged", model_config=config).model_uri
    loaded: Any = load_model(uri) if native else mlflow.pyfunc.load_model(uri)
    asked, all_asked = threading.Semaphore(10), threading.Barrier(10)

    def answer(messages: list[dict[str, Any]]) -> Any:
        if asked.acquire(blocking=False):
            all_asked.wait(timeout=60)
        if native:
            return loaded.chat(messages)
        return loaded.predict({"messages": messages})[0]

    rows = [
        {
            "inputs": {
                "messages": [{"role": "user", "content": f"What is the capital of {country}?"}]
            },
            "expectations": {"city": city},
        }
        for country, city in CITIES.items()
    ] * 5
    found = judged(data=rows, predict_fn=answer, scorers=[says_the_city])
    assert found.metrics == {"says_the_city/mean": 1}
    assert not all_asked.broken
