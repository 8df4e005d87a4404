"""Signatures and input examples that cannot work are refused before anything is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.llm import ChatMessage
from mlflow.types.schema import AnyType, Array, Map, Object, Property

import mlflow_phi3_onnx
from mlflow_phi3_onnx import InvalidRequestError, UnsupportedParameterError, save_model
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow import MlflowClient

MESSAGES = {"messages": [{"role": "user", "content": "Hello"}]}
PROMPT = {"prompt": "Hello"}
JSON = '[{"role": "user", "content": "Hello"}]'


FUNCTION = {"name": "f", "parameters": {"$ref": "#/nowhere"}}
FORCED = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("task", "example", "says"),
    [
        (CHAT, PROMPT, r"input_example: .*task='llm/v1/completions' or 'text-generation'"),
        (TEXT, MESSAGES, r"input_example: .*It fits task='llm/v1/chat'\."),
        (CHAT, {**MESSAGES, "temperature": 9}, r"input_example: temperature must .*got 9\.$"),
        (CHAT, (MESSAGES, {"temperature": 9}), r"input_example: params: temperature must"),
        (TEXT, ("Hello", "Hi"), r"input_example: params must be a mapping; got a string\.$"),
        (CHAT, [MESSAGES, {"messages": "Hello"}], r"input_example: messages must be a list"),
        (CHAT, {**MESSAGES, "no_such": 1}, r"input_example: no_such is not a parameter"),
        (TEXT, pd.DataFrame({"prompt": ["Hello"], "other": [1]}), r"input_example: other is not"),
        (COMPLETIONS, 5, r"input_example: The input must be a data frame"),
        (CHAT, {**MESSAGES, "stop": "a"}, r"MLflow's server would refuse it.*'stop'.* 1D array"),
        (CHAT, {"messages": JSON}, r"MLflow's server would .*signature\. Expected data to be list"),
        (TEXT, {**PROMPT, "stop": "a"}, r"MLflow's server would refuse it.*'stop'.* 1D array"),
        (TEXT, pd.Series(["Hello"]), r"MLflow's server would refuse it.*pandas.Series"),
        (CHAT, {"messages": [ChatMessage("user", "Hello")]}, r"ChatMessage is not JSON"),
        (CHAT, {**MESSAGES, "stream": True}, r"input_example: stream is true, but"),
        (CHAT, {**MESSAGES, "regex": "("}, r"input_example: regex cannot be used as a grammar"),
        (CHAT, {**MESSAGES, **FORCED}, r"input_example: tools cannot be used as a grammar"),
        (CHAT, {**MESSAGES, "reasoning_effort": "low"}, r"example: reasoning_effort is not supp"),
        (TEXT, "", r"input_example: The prompt is empty"),
        (TEXT, "b " * 9000, r"input_example: The prompt has .* context length is 4,096 tokens"),
        (TEXT, {**PROMPT, "max_tokens": 99_999}, r"input_example: .*Lower max_tokens or"),
        (TEXT, pd.DataFrame({"prompt": [["a", "b"]]}), r"input_example: prompt must be a string;"),
        (COMPLETIONS, {"prompt": [99_999]}, r"input_example: prompt\[0\] must be .* below 2,560"),
    ],
)
def test_an_example_that_the_model_would_refuse_is_never_saved(
    demo: Path, tmp_path: Path, task: Task, example: Any, says: str
) -> None:
    target = tmp_path / "model"
    with pytest.raises(
        (InvalidRequestError, UnsupportedParameterError), match=f"(?s){says}"
    ) as caught:
        save_model(demo, target, task=task, input_example=example)
    assert caught.value.param == "input_example"
    assert not target.exists()


@pytest.mark.parametrize("task", [CHAT, COMPLETIONS, TEXT])
def test_a_model_has_an_example_of_its_task_that_works(
    demo: Path, tmp_path: Path, task: Task
) -> None:
    save_model(demo, tmp_path / "model", task=task, model_config={"max_tokens": 2})
    saved: Any = Model.load(str(tmp_path / "model"))
    example = saved.load_input_example(str(tmp_path / "model"))
    loaded: Any = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert len(loaded.predict(example)) == 1
    assert saved.get_serving_input(str(tmp_path / "model"))
    loaded.get_raw_model().close()


@pytest.mark.parametrize(
    ("config", "name"),
    [({"regex": "("}, "regex"), ({"reasoning_effort": "low"}, "reasoning_effort")],
)
@pytest.mark.parametrize("example", [None, False])
def test_a_configuration_with_which_every_request_would_fail_is_refused(
    demo: Path, tmp_path: Path, config: dict[str, Any], name: str, example: Any
) -> None:
    with pytest.raises(
        (InvalidRequestError, UnsupportedParameterError), match=f"^model_config: {name}"
    ) as caught:
        save_model(demo, tmp_path / "model", model_config=config, input_example=example)
    assert caught.value.param == name
    assert not (tmp_path / "model").exists()


def test_an_example_that_is_refused_leaves_no_logged_model(demo: Path, store: MlflowClient) -> None:
    before = len(mlflow.search_logged_models(output_format="list"))
    with mlflow.start_run() as run, pytest.raises(InvalidRequestError, match="regex"):
        mlflow_phi3_onnx.log_model(demo, name="x", input_example={**MESSAGES, "regex": "("})
    assert len(mlflow.search_logged_models(output_format="list")) == before
    outputs = store.get_run(run.info.run_id).outputs
    assert outputs is None or not outputs.model_outputs


@pytest.mark.parametrize("config", [{}, {"max_tokens": 2, "min_tokens": 1}, {"max_length": 3}])
def test_what_some_request_can_have_is_saved(
    demo: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    save_model(demo, tmp_path / "model", model_config=config)
    saved = Model.load(str(tmp_path / "model")).saved_input_example_info
    assert (saved is None) == ("max_length" in config)  # its own example is too long for that


def test_a_model_may_have_no_example(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "model", input_example=False)
    assert Model.load(str(tmp_path / "model")).saved_input_example_info is None


TENSOR = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 3), "x")]))
TEXT_COLUMN = ModelSignature(Schema([ColSpec(DataType.string)]))


@pytest.mark.parametrize(
    ("task", "signature", "says"),
    [
        (
            CHAT,
            infer_signature(PROMPT, ["Hi"]),
            r"llm/v1/chat reads messages, which is none of the inputs: prompt\."
            r" It fits task='llm/v1/completions' or 'text-generation'\.",
        ),
        (TEXT, infer_signature(MESSAGES, ["Hi"]), r"reads prompt, .* It fits task='llm/v1/chat'"),
        (CHAT, TENSOR, r"none of the inputs: x\. Leave signature out"),
        (CHAT, TEXT_COLUMN, r"no names\. It fits task='llm/v1/completions' or 'text-generation'"),
    ],
)
def test_a_signature_without_the_tasks_input_is_refused(
    demo: Path, tmp_path: Path, task: Task, signature: ModelSignature, says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        save_model(demo, tmp_path / "model", task=task, signature=signature)
    assert caught.value.param == "signature"
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("signature", [infer_signature(PROMPT, ["Hi"]), TEXT_COLUMN])
@pytest.mark.parametrize("task", [TEXT, COMPLETIONS])
def test_a_signature_of_one_text_is_taken_for_prompts(
    demo: Path, tmp_path: Path, task: Task, signature: ModelSignature
) -> None:
    save_model(demo, tmp_path / "model", task=task, signature=signature)
    assert Model.load(str(tmp_path / "model")).signature == signature


def asking(column: ColSpec, **params: Any) -> ModelSignature:
    """A signature of a prompt and one more column, or of params with defaults."""
    specs = [ParamSpec(name, kind, value) for name, (kind, value) in params.items()]
    return ModelSignature(Schema([column]), params=ParamSchema(specs))


TEXTS = ColSpec(DataType.string, "prompt")
MORE = ModelSignature(Schema([TEXTS, ColSpec(DataType.long, "max_tokens")]))


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        (
            asking(ColSpec(DataType.long, "prompt")),
            r"prompt must be a .*; got a column of type long\.",
        ),
        (asking(TEXTS, no_such=("long", 1)), r"^signature: no_such is not a parameter of"),
        (asking(TEXTS, max_new_tokens=("long", 9)), r"^signature: max_new_tokens .*Use max_tokens"),
        (asking(TEXTS, temperature=("double", 9.0)), r"^signature: temperature must .* got 9\.0"),
        (asking(TEXTS, output=("string", "xml")), r"^signature: output must be one of openai"),
        (
            ModelSignature(Schema([TEXTS, ColSpec(DataType.string, "other")])),
            r"^signature: other is not a parameter of",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", [TEXT, COMPLETIONS])
def test_a_signature_with_which_every_request_would_fail_is_refused(
    demo: Path, tmp_path: Path, task: Task, signature: ModelSignature, says: str
) -> None:
    with pytest.raises((InvalidRequestError, UnsupportedParameterError), match=says):
        save_model(demo, tmp_path / "model", task=task, signature=signature)
    assert not (tmp_path / "model").exists()


MEMBER = {"role": DataType.string, "content": DataType.string}


def messages_of(**members: Any) -> Array:
    return Array(Object([Property(name, kind) for name, kind in members.items()]))


@pytest.mark.parametrize(
    "kind",
    [
        Array(DataType.string),
        DataType.long,
        messages_of(text=DataType.string),
        messages_of(**{**MEMBER, "content": DataType.long}),
        messages_of(**{**MEMBER, "role": DataType.boolean}),
        Array(Map(DataType.double)),
        Array(messages_of(**MEMBER)),
        messages_of(**MEMBER).dtype,
    ],
    ids=str,
)
def test_messages_that_a_column_cannot_hold_are_refused(
    demo: Path, tmp_path: Path, kind: Any
) -> None:
    signature = ModelSignature(Schema([ColSpec(kind, "messages")]))
    with pytest.raises(InvalidRequestError, match=r"^signature: messages must be a list of obj"):
        save_model(demo, tmp_path / "model", signature=signature)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "kind",
    [
        AnyType(),
        DataType.string,
        Array(AnyType()),
        Array(Map(DataType.string)),
        Array(Map(AnyType())),
        messages_of(role=DataType.string),
        messages_of(**MEMBER, tool_calls=Array(AnyType())),
        messages_of(role=DataType.string, content=messages_of(type=DataType.string)),
    ],
    ids=str,
)
def test_messages_that_a_column_can_hold_are_taken(demo: Path, tmp_path: Path, kind: Any) -> None:
    signature = ModelSignature(Schema([ColSpec(kind, "messages")]))
    save_model(demo, tmp_path / "model", signature=signature)


@pytest.mark.parametrize("kind", [messages_of(a=DataType.string).dtype, Array(DataType.long)])
def test_a_text_s_column_of_something_else_is_refused(
    demo: Path, tmp_path: Path, kind: Any
) -> None:
    signature = ModelSignature(Schema([ColSpec(kind, "prompt")]))
    with pytest.raises(InvalidRequestError, match=r"^signature: prompt must be a string, or a"):
        save_model(demo, tmp_path / "model", task=TEXT, signature=signature)


@pytest.mark.parametrize(
    ("name", "kind", "taken"),
    [
        ("temperature", DataType.string, False),
        ("temperature", DataType.long, True),
        ("max_tokens", DataType.double, True),
        ("max_tokens", Array(DataType.long), False),
        ("regex", DataType.long, False),
        ("stop", DataType.string, True),
        ("stop", Array(DataType.string), True),
        ("stop", DataType.boolean, False),
        ("tools", Array(AnyType()), True),
    ],
    ids=str,
)
def test_a_required_column_must_hold_what_its_parameter_may_be(
    demo: Path, tmp_path: Path, name: str, kind: Any, taken: bool
) -> None:
    messages = ColSpec(Array(AnyType()), "messages")
    signature = ModelSignature(Schema([messages, ColSpec(kind, name)]))
    if taken:
        save_model(demo, tmp_path / "model", signature=signature)
        return
    with pytest.raises(InvalidRequestError, match=rf"^signature: {name} must be .*got a column"):
        save_model(demo, tmp_path / "model", signature=signature)


@pytest.mark.parametrize(
    ("task", "signature", "example"),
    [
        (CHAT, infer_signature({"messages": JSON}), {"messages": str}),
        (CHAT, infer_signature(MESSAGES), {"messages": list}),
        (COMPLETIONS, asking(ColSpec(Array(DataType.string), "prompt")), {"prompt": list}),
        (TEXT, asking(ColSpec(Array(DataType.string), "prompt")), {"prompt": list}),
        (TEXT, asking(TEXTS, max_tokens=("long", 2), stop=("string", None)), {"prompt": str}),
        (TEXT, MORE, None),
    ],
    ids=str,
)
def test_the_example_that_is_saved_fits_the_signature(
    demo: Path, tmp_path: Path, task: Task, signature: Any, example: Any
) -> None:
    save_model(demo, tmp_path / "model", task=task, signature=signature)
    saved: Any = Model.load(str(tmp_path / "model"))
    found = saved.load_input_example(str(tmp_path / "model")) if example else None
    assert (found and {name: type(value) for name, value in found.items()}) == example
    assert (saved.saved_input_example_info is None) == (example is None)


def test_the_example_of_a_plain_signature_is_a_frame_of_text(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "model", signature="plain")
    frame: Any = Model.load(str(tmp_path / "model")).load_input_example(str(tmp_path / "model"))
    (text,) = frame["messages"]
    assert isinstance(text, str)


def test_an_example_is_held_to_the_signature_that_is_given(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"missing inputs \['max_tokens'\]\.$") as caught:
        save_model(demo, tmp_path / "no", task=TEXT, signature=MORE, input_example=PROMPT)
    assert "Hello" not in str(caught.value)
    fits = {**PROMPT, "max_tokens": 2}
    save_model(demo, tmp_path / "model", task=TEXT, signature=MORE, input_example=fits)
