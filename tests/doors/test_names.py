"""The table of names by door (docs/parameters.md) is true: each name arrives, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, Task
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from tests.support.bodies import parsed
from tests.support.doors import ONE_LOOP, SPAIN
from tests.support.names import NAMES, NO_BOOLEAN, wrong

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_phi3_onnx.core.options import Option


@pytest.fixture(scope="module")
def models(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Any]:
    folder = tmp_path_factory.mktemp("saved")
    for number, task in enumerate(ALL_TASKS):
        mlflow_phi3_onnx.save_model(demo, folder / str(number), task=task)
    return {
        task: mlflow.pyfunc.load_model(str(folder / str(number)))
        for number, task in enumerate(ALL_TASKS)
    }


def prompt(task: Task) -> dict[str, Any]:
    return {INPUT_FIELDS[task]: SPAIN if task == CHAT else "The capital of Spain is"}


def refused(door: Callable[[], Any], row: Option) -> None:
    with pytest.raises((InvalidRequestError, UnsupportedParameterError)) as caught:
        door()
    assert (caught.value.param or "").partition(".")[0].partition("[")[0] == row.name


@ONE_LOOP
@pytest.mark.parametrize(("task", "row"), NAMES, ids=[f"{t}-{r.name}" for t, r in NAMES])
def test_a_name_arrives_through_every_door(
    model: GenAIModel, models: dict[Task, Any], task: Task, row: Option
) -> None:
    bad = wrong(row)
    pyfunc = models[task]
    fields = {**prompt(task), row.name: bad}
    refused(lambda: model.run(task, [fields]), row)
    refused(lambda: pyfunc.predict(fields), row)
    if row.check.type is None or bad == NO_BOOLEAN:
        return
    refused(lambda: pyfunc.predict(prompt(task), params={row.name: bad}), row)
    body = parsed(pyfunc, fields)
    assert row.name in (body.params or {})
    refused(lambda: pyfunc.predict(body.data, params=body.params), row)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_true_and_false_arrive_in_params(models: dict[Task, Any], task: Task) -> None:
    with pytest.raises(InvalidRequestError, match="so ignore_eos cannot"):
        models[task].predict(prompt(task), params={"ignore_eos": True, "regex": "a"})


@pytest.mark.parametrize("task", ALL_TASKS)
def test_what_params_carry_is_honoured(models: dict[Task, Any], task: Task) -> None:
    def told(**params: Any) -> str:
        (answer,) = models[task].predict(prompt(task), params={"output": "text", **params})
        return answer

    whole = told()
    assert whole.strip().endswith("Madrid.")
    assert told(stop=["adrid"]) == whole.removesuffix("adrid.")
    assert told(choice=["Rome", "Oslo"]) in ("Rome", "Oslo")
    assert told(regex="[x-z]{3}", max_tokens=20).strip("xyz") == ""
    assert told(max_tokens=1) == whole[: len(told(max_tokens=1))] != whole
    assert told(do_sample=False, temperature=1.9) == whole


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_name_that_params_cannot_carry_goes_into_the_row(
    models: dict[Task, Any], task: Task
) -> None:
    fields = {**prompt(task), "logit_bias": {"5": 200}}
    with pytest.raises(MlflowException, match="logit_bias must be"):
        models[task].predict(fields)
