"""The signatures that models are saved with, as MLflow, Unity Catalog and servers read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import yaml
from mlflow.models import Model, ModelSignature, validate_schema
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, Schema

from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.flavor.signatures import plain_signature, signature
from mlflow_phi3_onnx.openai.parameters import PARAMETERS

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx import GenAIModel

EVERY_TASK = pytest.mark.parametrize("task", ALL_TASKS)

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
@pytest.mark.parametrize("make", [signature, plain_signature])
def test_each_schema_survives_its_own_form(task: Task, make: Any) -> None:
    one = make(task)
    for schema in filter(None, (one.inputs, one.outputs)):
        assert Schema.from_json(schema.to_json()) == schema
    assert ParamSchema.from_json(one.params.to_json()) == one.params


def test_only_the_messages_of_a_chat_are_required() -> None:
    assert inputs(CHAT).required_input_names() == ["messages"]


@pytest.mark.parametrize("task", [COMPLETIONS, TEXT])
def test_a_prompt_has_no_schema_for_it_comes_in_many_forms(task: Task) -> None:
    assert signature(task).inputs is None


def test_a_chat_s_columns_are_what_does_something_and_then_what_is_refused() -> None:
    names = [str(name) for name in inputs(CHAT).optional_input_names()]
    rows = [PARAMETERS[CHAT][name] for name in names]
    honoured = [row.name for row in rows if row.status == "honoured"]
    assert names[: len(honoured)] == honoured
    assert set(PARAMETERS[CHAT]) - set(names) == {
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
    }
    columns = inputs(CHAT).input_dict()
    assert isinstance(columns["stop"], ColSpec)
    assert isinstance(columns["stop"].type, AnyType)


@EVERY_TASK
def test_a_plain_signature_has_one_column_of_text(task: Task) -> None:
    plain = plain_signature(task)
    field = "messages" if task == CHAT else "prompt"
    assert plain.inputs.to_dict() == [{"type": "string", "name": field, "required": True}]
    assert plain.outputs.to_dict() == [{"type": "string", "required": True}]
    assert plain.params == signature(task).params


@pytest.mark.parametrize("output", ["text", "json"])
def test_an_output_of_text_is_one_column(output: str) -> None:
    assert signature(CHAT, output).outputs == plain_signature(CHAT).outputs


@EVERY_TASK
def test_params_have_no_value_of_their_own(task: Task) -> None:
    specs = {spec.name: spec for spec in params(task).params}
    assert set(specs) > {*NUMBERS, "stop", "regex", "output", "on_error"}
    assert all(spec.default in (None, []) for spec in specs.values())


@EVERY_TASK
def test_params_carry_what_has_one_plain_type(task: Task) -> None:
    specs = {spec.name for spec in params(task).params}
    assert not specs & {"logit_bias", "tools", "tool_choice", "response_format", "prediction"}
    assert {"max_new_tokens", "num_beams"} < specs  # to be refused, and not dropped


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
