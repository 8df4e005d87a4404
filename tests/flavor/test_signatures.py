"""The signatures that models are saved with, as MLflow, Unity Catalog and servers read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import yaml
from mlflow.models import Model, ModelSignature, validate_schema
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, Schema

from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.flavor.signatures import signature
from mlflow_phi3_onnx.openai.parameters import PARAMETERS

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx import GenAIModel

EVERY_TASK = pytest.mark.parametrize("task", ALL_TASKS)
OPENAI = pytest.mark.parametrize("task", [CHAT, COMPLETIONS])

NUMBERS = {"temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty"}


def inputs(task: Task) -> Schema:
    schema = signature(task).inputs
    assert schema is not None
    return schema


def params(task: Task) -> ParamSchema:
    schema = signature(task).params
    assert schema is not None
    return schema


@EVERY_TASK
def test_it_survives_the_mlmodel_file(task: Task, tmp_path: Path) -> None:
    Model(signature=signature(task)).save(str(tmp_path / "MLmodel"))
    assert Model.load(str(tmp_path / "MLmodel")).signature == signature(task)


@EVERY_TASK
def test_it_survives_yaml(task: Task) -> None:
    text = yaml.safe_dump(signature(task).to_dict())
    assert ModelSignature.from_dict(yaml.safe_load(text)) == signature(task)


@EVERY_TASK
def test_each_schema_survives_its_own_form(task: Task) -> None:
    one = signature(task)
    assert one.inputs is not None
    assert one.outputs is not None
    assert one.params is not None
    assert Schema.from_json(one.inputs.to_json()) == one.inputs
    assert Schema.from_json(one.outputs.to_json()) == one.outputs
    assert ParamSchema.from_json(one.params.to_json()) == one.params


@EVERY_TASK
def test_it_has_inputs_and_outputs_as_a_catalog_demands(task: Task) -> None:
    assert signature(task).inputs
    assert signature(task).outputs


@EVERY_TASK
def test_only_the_prompt_is_required(task: Task) -> None:
    field = "messages" if task == CHAT else "prompt"
    assert inputs(task).required_input_names() == [field]


@OPENAI
def test_every_parameter_is_a_column_of_any_type(task: Task) -> None:
    columns = inputs(task).input_dict()
    assert set(inputs(task).optional_input_names()) >= set(PARAMETERS[task])
    assert isinstance(columns["stop"], ColSpec)
    assert isinstance(columns["stop"].type, AnyType)


@EVERY_TASK
def test_params_are_the_numbers_and_have_no_value_of_their_own(task: Task) -> None:
    specs = {spec.name: spec for spec in params(task).params}
    assert set(specs) > NUMBERS
    assert {specs[name].default for name in NUMBERS} == {None}


@OPENAI
def test_stop_is_no_param_because_a_string_would_be_refused(task: Task) -> None:
    assert "stop" not in {spec.name for spec in params(task).params}


def test_text_generation_takes_stop_as_a_param() -> None:
    assert "stop" in {spec.name for spec in params(TEXT).params}


def test_a_chat_answer_fits_the_outputs(model: GenAIModel) -> None:
    answer = model.chat([{"role": "user", "content": "Hello"}], max_tokens=2)
    check(answer, CHAT)


def test_several_chat_answers_fit_the_outputs(model: GenAIModel) -> None:
    check(model.chat([{"role": "user", "content": "Hello"}], max_tokens=2, n=2), CHAT)


def test_a_completion_fits_the_outputs(model: GenAIModel) -> None:
    check(model.complete("Hello", max_tokens=2), COMPLETIONS)


def check(answer: dict[str, Any], task: Task) -> None:
    outputs = signature(task).outputs
    assert outputs is not None
    validate_schema(pd.DataFrame([answer]), outputs)
    assert set(outputs.input_names()) == set(answer)
