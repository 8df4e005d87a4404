"""What may be given to a pyfunc's ``predict``, and what it answers with."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.pyfunc.scoring_server import parse_csv_input

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task
from tests.support.bodies import posted
from tests.support.doors import ONE_LOOP, SPAIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

P, Q = "The capital of Spain is", "The capital of Italy is"
ANSWER = "The capital of Spain is Madrid."
MESSAGES = json.dumps(SPAIN)


@pytest.fixture(scope="module")
def load(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Save a model once and load it as a pyfunc."""
    loaded: dict[str, Any] = {}

    def of(task: Task, **options: Any) -> Any:
        key = f"{task} {sorted(map(str, options.items()))}"
        if key not in loaded:
            folder = tmp_path_factory.mktemp("saved")
            mlflow_phi3_onnx.save_model(demo, folder, task=task, **options)
            loaded[key] = mlflow.pyfunc.load_model(str(folder))
        return loaded[key]

    return of


ONE = {
    "a string": P,
    "a list": [P],
    "a Series": pd.Series([P]),
    "a Series with a name": pd.Series([P], name="question"),
    "an array": np.array([P]),
    "a frame of one column": pd.DataFrame({"question": [P]}),
    "a frame": pd.DataFrame({"prompt": [P]}),
    "an object": {"prompt": P},
    "an object with a list": {"prompt": [P]},
    "an object with an array": {"prompt": np.array([P])},
    "objects": [{"prompt": P}],
}


@pytest.mark.parametrize("form", ONE, ids=str)
def test_a_prompt_comes_in_many_forms(load: Callable[..., Any], form: str) -> None:
    assert load(TEXT).predict(ONE[form]) == [" Madrid."]
    (answer,) = load(COMPLETIONS).predict(ONE[form])
    assert [choice["text"] for choice in answer["choices"]] == [" Madrid."]


TWO: dict[str, Any] = {
    "a list": [P, Q],
    "a Series": pd.Series([P, Q]),
    "an array": np.array([P, Q]),
    "a frame": pd.DataFrame({"x": [P, Q]}),
    "an object": {"prompt": [P, Q]},
    "an object with a parameter": {"prompt": [P, Q], "max_tokens": 5},
    "an object with a parameter a row": {"prompt": [P, Q], "max_tokens": [5, 6]},
}


@pytest.mark.parametrize("form", TWO, ids=str)
def test_prompts_come_in_many_forms(load: Callable[..., Any], form: str) -> None:
    assert load(TEXT).predict(TWO[form]) == [" Madrid.", " Rome."]


def test_the_prompts_of_a_completion_are_one_request(load: Callable[..., Any]) -> None:
    (answer,) = load(COMPLETIONS).predict({"prompt": [P, Q]})
    assert [choice["text"] for choice in answer["choices"]] == [" Madrid.", " Rome."]


def test_a_stream_takes_a_string(load: Callable[..., Any]) -> None:
    assert "".join(load(TEXT).predict_stream(P)) == " Madrid."


def test_parameters_are_fields_of_a_row(load: Callable[..., Any]) -> None:
    frame = pd.DataFrame(
        {"prompt": [P, Q, P], "max_tokens": [1, None, None], "stop": [None, "R", None]}
    )
    assert load(TEXT).predict(frame) == [" Madrid", " ", " Madrid."]
    assert load(TEXT).predict({"prompt": [P, Q], "max_tokens": [1, 2]}) == [" Madrid", " Rome."]
    assert load(TEXT).predict({"prompt": [P, Q], "stop": ["R", "d"]}) == [" Ma", " "]
    with pytest.raises(InvalidRequestError, match=r"row 0: maxtokens is not a parameter"):
        load(TEXT).predict(pd.DataFrame({"prompt": [P, Q], "maxtokens": 1}))


BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "inputs": ({"inputs": P}, [" Madrid."]),
    "inputs, several": ({"inputs": [P, Q]}, [" Madrid.", " Rome."]),
    "inputs, an object": ({"inputs": {"prompt": [P, Q]}}, [" Madrid.", " Rome."]),
    "inputs, objects": ({"inputs": [{"prompt": P, "max_tokens": 1}]}, [" Madrid"]),
    "a prompt": ({"prompt": P, "max_tokens": 1}, [" Madrid"]),
    "prompts": ({"prompt": [P, Q]}, [" Madrid.", " Rome."]),
    "instances": ({"instances": [P, Q]}, [" Madrid.", " Rome."]),
    "instances, objects": (
        {"instances": [{"prompt": P, "max_tokens": 1}, {"prompt": Q, "max_tokens": 2}]},
        [" Madrid", " Rome."],
    ),
    "instances, stops": (
        {"instances": [{"prompt": P, "stop": ["a", "d"]}, {"prompt": Q, "stop": ["R", "m"]}]},
        [" M", " "],
    ),
    "records": ({"dataframe_records": [{"prompt": P, "max_tokens": 1}]}, [" Madrid"]),
    "split": ({"dataframe_split": {"data": [[P], [Q]]}}, [" Madrid.", " Rome."]),
}


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_prompts_in_the_bodies_that_mlflow_s_server_takes(
    load: Callable[..., Any], body: str
) -> None:
    given, expected = BODIES[body]
    assert posted(load(TEXT), given) == expected


def test_prompts_as_csv(load: Callable[..., Any]) -> None:
    csv = parse_csv_input(io.StringIO(f"anything\n{P}\n{Q}\n"))
    assert load(TEXT).predict(csv) == [" Madrid.", " Rome."]


def test_the_signature_of_the_other_wrapper_holds_where_it_is_given(
    load: Callable[..., Any],
) -> None:
    pyfunc = load(TEXT, signature=infer_signature({"prompt": P}, ["Madrid"]))
    assert str(pyfunc.metadata.signature.inputs) == "['prompt': string (required)]"
    assert pyfunc.predict({"prompt": P}) == [" Madrid."]
    assert pyfunc.predict({"prompt": [P, Q]}) == [" Madrid.", " Rome."]


def content(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["choices"][0]["message"]["content"] for answer in answers]


@pytest.mark.parametrize("given", ["of", ["of"], ["of", "x"]], ids=repr)
def test_what_only_some_instances_have_is_of_none_of_them(
    load: Callable[..., Any], given: Any
) -> None:
    """MLflow says not of which one it was: it would hold for all."""
    instances = [{"messages": SPAIN}, {"messages": SPAIN, "stop": given}]
    with pytest.raises(InvalidRequestError, match="one value for each of the 2 rows; got 1"):
        posted(load(CHAT), {"instances": instances})
    answers = posted(load(CHAT), {"dataframe_records": instances})
    assert content(answers) == [ANSWER, "The capital "]


def test_instances_of_a_chat(load: Callable[..., Any]) -> None:
    one = {"messages": SPAIN}
    assert content(posted(load(CHAT), {"instances": [one]})) == [ANSWER]
    assert content(posted(load(CHAT), {"instances": [one, one]})) == [ANSWER] * 2
    capped = [{**one, "max_tokens": 1}, {**one, "max_tokens": 2}]
    assert content(posted(load(CHAT), {"instances": capped})) == ["The", "The capital"]
    stops = [{**one, "stop": ["capital"]}, {**one, "stop": ["of"]}]
    assert content(posted(load(CHAT), {"instances": stops})) == ["The ", "The capital "]
    texts = [{**one, "stop": "capital"}, {**one, "stop": "of"}]
    assert content(posted(load(CHAT), {"instances": texts})) == ["The ", "The capital "]


def test_a_plain_signature_has_text_for_messages_and_text_for_an_answer(
    load: Callable[..., Any],
) -> None:
    pyfunc = load(CHAT, signature="plain")
    frame = pd.DataFrame({"messages": [MESSAGES, MESSAGES]})
    assert pyfunc.predict(frame) == [ANSWER] * 2
    assert pyfunc.predict(frame[:1], params={"max_tokens": 1}) == ["The"]
    (answer,) = pyfunc.predict({"messages": MESSAGES}, params={"output": "json"})
    assert content([json.loads(answer)]) == [ANSWER]
    with pytest.raises(InvalidRequestError, match="messages must be a list"):
        pyfunc.predict({"messages": "What is the capital of Spain?"})
    assert load(COMPLETIONS, signature="plain").predict(pd.DataFrame({"prompt": [P]})) == [
        " Madrid."
    ]


def test_an_example_of_a_plain_signature_fits_it(load: Callable[..., Any]) -> None:
    pyfunc = load(CHAT, signature="plain")
    (answer,) = pyfunc.predict(pyfunc.input_example)
    assert answer == ANSWER


def test_a_plain_signature_refuses_objects(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="output is openai, but a plain signature"):
        mlflow_phi3_onnx.save_model(
            demo, tmp_path, signature="plain", model_config={"output": "openai"}
        )


@pytest.mark.parametrize("task", [CHAT, COMPLETIONS])
def test_output_says_what_an_answer_is(load: Callable[..., Any], task: Task) -> None:
    expected = ANSWER if task == CHAT else " Madrid."
    fields = {"messages": SPAIN} if task == CHAT else {"prompt": P}
    pyfunc = load(task, model_config={"output": "text"})
    assert pyfunc.predict(fields) == [expected]
    (answer,) = pyfunc.predict(fields, params={"output": "openai"})
    assert answer["choices"][0]["finish_reason"] == "stop"
    (told,) = pyfunc.predict({**fields, "n": 2}, params={"output": "json"})
    assert isinstance(told, str)
    assert json.loads(told)["usage"]["total_tokens"] == answer["usage"]["total_tokens"] + (
        8 if task == CHAT else 3
    )
    with pytest.raises(
        InvalidRequestError, match="params: output must be one of openai, text, json"
    ):
        pyfunc.predict(fields, params={"output": "xml"})
    with pytest.raises(InvalidRequestError, match="output is for predict"):
        list(pyfunc.predict_stream(fields, params={"output": "text"}))


def test_a_call_has_no_text(load: Callable[..., Any]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    fields = {"messages": SPAIN, "tools": [tool], "tool_choice": "required", "max_tokens": 40}
    assert load(CHAT).predict(fields, params={"output": "text"}) == [""]


ROWS: dict[Task, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": SPAIN},
        {"messages": None},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": SPAIN, "max_tokens": 9999},
        {"messages": SPAIN, "timeout": 1e-9},
        {"messages": SPAIN},
    ],
    COMPLETIONS: [
        {"prompt": P},
        {"prompt": None},
        {"prompt": [1, "a"]},
        {"prompt": P, "max_tokens": 9999},
        {"prompt": P, "timeout": 1e-9},
        {"prompt": P},
    ],
    TEXT: [
        {"prompt": P},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": P, "max_tokens": 9999},
        {"prompt": P, "timeout": 1e-9},
        {"prompt": P},
    ],
}
PARAMS = ["messages", "messages[0].role"]


@pytest.mark.parametrize("task", ROWS)
def test_on_error_row_answers_all_rows_but_those_that_fail(model: GenAIModel, task: Task) -> None:
    good, *bad, again = model.run(task, ROWS[task], on_error="row")
    (alone,) = model.run(task, ROWS[task][:1])
    assert text_of(good) == text_of(again) == text_of(alone)
    errors = [answer["error"] for answer in bad]
    field = "messages" if task == CHAT else "prompt"
    assert [error["type"] for error in errors] == ["invalid_request_error"] * 3 + ["server_error"]
    assert [error["code"] for error in errors[2:]] == ["context_length_exceeded", "timeout"]
    assert all(error["param"].startswith(field) for error in errors[:2])
    assert not any("row" in error["message"] for error in errors)


def text_of(answer: Any) -> Any:
    return answer if isinstance(answer, str) else answer["choices"]


def test_a_row_that_never_fits_the_memory_fails_alone(demo: Path, loop: str) -> None:
    config = {"kv_cache_memory": 1 << 19, "loop": loop}
    rows = [
        {"prompt": P, "max_tokens": 2},
        {"prompt": P, "max_tokens": 2000},
        {"prompt": Q, "max_tokens": 2},
    ]
    with GenAIModel(demo, model_config=config) as small:
        first, failed, last = small.run(TEXT, rows, on_error="row")
    assert (first, last) == (" Madrid.", " Rome.")
    assert failed["error"]["code"] == "insufficient_kv_cache"


@ONE_LOOP
def test_on_error_is_what_it_may_be(model: GenAIModel) -> None:
    with pytest.raises(InvalidRequestError, match="on_error must be one of raise, row"):
        model.run(TEXT, [{"prompt": P}], on_error="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["openai", "text", "json"])
def test_an_error_stands_in_its_row(load: Callable[..., Any], output: str) -> None:
    frame = pd.DataFrame({"messages": [SPAIN, None, SPAIN]})
    params = {"on_error": "row", "output": output}
    first, failed, last = load(CHAT).predict(frame, params=params)
    if output != "openai":
        assert isinstance(failed, str)
        failed = json.loads(failed)
        assert failed.keys() == {"error"}
    else:
        assert failed.keys() == first.keys() | {"error"}
        assert (failed["object"], failed["choices"]) == ("error", [])
    assert failed["error"] == {
        "message": "messages is missing. Send a list of objects with role and content.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": None,
    }
    told = {
        "openai": lambda a: content([a])[0],
        "text": str,
        "json": lambda a: content([json.loads(a)])[0],
    }
    assert told[output](first) == told[output](last) == ANSWER


def test_on_error_is_saved_or_given_at_load(load: Callable[..., Any]) -> None:
    pyfunc = load(TEXT, model_config={"on_error": "row"})
    first, failed = pyfunc.predict(pd.DataFrame({"prompt": [P, None]}))
    assert first == " Madrid."
    assert json.loads(failed)["error"]["param"] == "prompt"
    with pytest.raises(InvalidRequestError, match="row 1: prompt must be a string"):
        pyfunc.predict(pd.DataFrame({"prompt": [P, None]}), params={"on_error": "raise"})


@pytest.mark.parametrize("name", ["output", "on_error"])
def test_the_native_model_leaves_a_pyfunc_s_settings_alone(
    demo: Path, tmp_path: Path, name: str
) -> None:
    config = {name: {"output": "text", "on_error": "row"}[name]}
    mlflow_phi3_onnx.save_model(demo, tmp_path, model_config=config)
    with mlflow_phi3_onnx.load_model(tmp_path) as model:
        assert content([model.chat(SPAIN)]) == [ANSWER]
    for make in (
        lambda: mlflow_phi3_onnx.load_model(tmp_path, model_config=config),
        lambda: GenAIModel(demo, model_config=config),
    ):
        with pytest.raises(InvalidRequestError, match=f"model_config: {name} is for pyfuncs"):
            make()
