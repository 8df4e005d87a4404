"""MLflow's own evaluation of a model, by its URI alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow.models
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.metrics import exact_match

from mlflow_phi3_onnx import log_model

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
}


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
    assert result.metrics == {"exact_match/v1": 1.0}
    with pytest.raises(MlflowException, match="Output column name is not specified"):
        mlflow.models.evaluate(uri, data, targets="right", extra_metrics=metrics)
