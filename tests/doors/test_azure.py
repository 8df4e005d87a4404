"""Models in Azure ML's no-code deployments, in a stand-in for Azure's script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from mlflow import MlflowException
from mlflow.models import Model

from mlflow_phi3_onnx import save_model
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task
from tests.support.no_code import NoCodeScript

if TYPE_CHECKING:
    from pathlib import Path

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
PROMPT = "The capital of Spain is"
ANSWER = "The capital of Spain is Madrid."

TASKS: list[tuple[Task, str, str, str]] = [
    (CHAT, "messages", json.dumps(SPAIN), ANSWER),
    (COMPLETIONS, "prompt", PROMPT, " Madrid."),
    (TEXT, "prompt", PROMPT, " Madrid."),
]


def table(column: str, *cells: Any) -> dict[str, Any]:
    rows = [[cell] for cell in cells]
    return {"columns": [column], "index": list(range(len(rows))), "data": rows}


@pytest.mark.parametrize(("task", "column", "asked", "answer"), TASKS)
def test_a_plain_signature_starts_and_answers(
    demo: Path, tmp_path: Path, task: Task, column: str, asked: str, answer: str
) -> None:
    save_model(demo, tmp_path / "model", task=task, signature="plain")
    script = NoCodeScript(tmp_path / "model")

    def post(*cells: Any, **fields: Any) -> tuple[int, Any]:
        return script.score(json.dumps({"input_data": table(column, *cells), **fields}))

    assert post(asked, asked) == (200, [answer, answer])
    cut = answer.partition("Madrid")[0]
    assert post(asked, params={"stop": ["Madrid"], "temperature": 0}) == (200, [cut])
    status, [written] = post(asked, params={"output": "json", "max_tokens": 1})
    counts = {"completion_tokens": 1}
    assert status == 200
    assert task == TEXT or json.loads(written)["usage"].items() >= counts.items()

    wrong = ["[1]" if task == CHAT else None]
    assert post(asked, *wrong)[0] == 500
    status, [first, second] = post(asked, *wrong, params={"on_error": "row"})
    assert (status, first) == (200, answer)
    assert json.loads(second)["error"]["param"] == ("messages[0]" if task == CHAT else "prompt")
    assert post(asked, params={"temperature": 9})[0] == 500
    assert script.score(json.dumps({column: asked}))[0] == 400
    script.close()


@pytest.mark.parametrize(
    "example",
    [{"messages": SPAIN}, pd.DataFrame({"messages": [SPAIN]}), ({"messages": SPAIN}, {"n": 2})],
)
def test_an_example_of_ones_own_is_no_hindrance(demo: Path, tmp_path: Path, example: Any) -> None:
    folder = tmp_path / "model"
    save_model(demo, folder, signature="plain", input_example=example)
    saved: Any = Model.load(str(folder))
    assert saved.load_input_example(str(folder)).to_dict("records") == [
        {"messages": json.dumps(SPAIN)}
    ]
    NoCodeScript(folder).close()


@pytest.mark.parametrize("task", [CHAT, COMPLETIONS, TEXT])
def test_the_tasks_own_signature_does_not_start(demo: Path, tmp_path: Path, task: Task) -> None:
    """If one does, docs/clouds.md need not ask for a plain signature any more."""
    save_model(demo, tmp_path / "model", task=task, input_example=False)
    nested = (MlflowException, "Failed to get pandas types")
    kind, says = nested if task == CHAT else (AttributeError, "'NoneType' .* 'inputs'")
    with pytest.raises(kind, match=says):
        NoCodeScript(tmp_path / "model")


def test_no_signature_and_no_example_give_objects(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "model", signature=False, input_example=False)
    script = NoCodeScript(tmp_path / "model")
    body = {"input_data": {"messages": SPAIN, "stop": ["Madrid"]}}
    status, [answer] = script.score(json.dumps(body))
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "The capital of Spain is "
    script.close()
    save_model(demo, tmp_path / "other", signature=False)
    with pytest.raises(TypeError, match="must have arrays"):
        NoCodeScript(tmp_path / "other")
