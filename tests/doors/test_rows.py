"""Rows as MLflow hands them over: every form of input means what the native call means."""

from __future__ import annotations

import json
from copy import deepcopy
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature, validate_serving_input

from mlflow_phi3_onnx import (
    GenAIModel,
    InvalidRequestError,
    UnsupportedParameterError,
    save_model,
)
from tests.support.doors import COUNTED, counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow.pyfunc import PyFuncModel

    from mlflow_phi3_onnx.core.tasks import Task

PROMPT = "The capital of Spain is"
USER = {"role": "user", "content": "What is the capital of Spain?"}
MESSAGES = [{"role": "system", "content": "Answer."}, USER]
SHORT = {"max_tokens": 4, "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "capital",
        "parameters": {"type": "object", "properties": {"country": {"type": "string"}}},
    },
}


def opened(demo: Path, folder: Path, task: Task) -> Iterator[PyFuncModel]:
    save_model(demo, folder, task=task, model_config={"max_tokens": 5, "temperature": 0})
    model = mlflow.pyfunc.load_model(str(folder))
    with model.get_raw_model():
        yield model


@pytest.fixture(scope="module")
def native(demo: Path) -> Iterator[GenAIModel]:
    """The model itself, in the loop that a pyfunc is loaded with."""
    with GenAIModel(demo) as model:
        yield model


@pytest.fixture(scope="module")
def chat(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyFuncModel]:
    """A chat model whose answers are greedy and have at most five tokens."""
    yield from opened(demo, tmp_path_factory.mktemp("chat"), "llm/v1/chat")


@pytest.fixture(scope="module")
def completions(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyFuncModel]:
    """A completions model with the same configuration."""
    yield from opened(demo, tmp_path_factory.mktemp("completions"), "llm/v1/completions")


@pytest.fixture(scope="module")
def text(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyFuncModel]:
    """A text-generation model with the same configuration."""
    yield from opened(demo, tmp_path_factory.mktemp("text"), "text-generation")


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two responses are equal but for id and time, and for what a cache held."""
    for response in (one, other):
        assert response["id"]
        assert response["created"] > 0
    keys = ("object", "model", "choices")
    assert [one[key] for key in keys] == [other[key] for key in keys]
    assert counts(one["usage"]) == counts(other["usage"])


def used(answer: dict[str, Any]) -> int:
    return answer["usage"]["completion_tokens"]


def test_one_object_is_one_row(chat: PyFuncModel, native: GenAIModel) -> None:
    [answer] = chat.predict({"messages": MESSAGES, **SHORT})
    same(answer, native.chat(MESSAGES, **SHORT))


def test_a_list_of_objects_is_a_row_each(chat: PyFuncModel, native: GenAIModel) -> None:
    answers = chat.predict([{"messages": MESSAGES, **SHORT}, {"messages": [USER], **SHORT}])
    same(answers[0], native.chat(MESSAGES, **SHORT))
    same(answers[1], native.chat([USER], **SHORT))


def test_a_data_frame_is_a_row_each(chat: PyFuncModel, native: GenAIModel) -> None:
    frame = pd.DataFrame({"messages": [MESSAGES, [USER]], "max_tokens": [4, 3]}, index=[7, 7])
    answers = chat.predict(frame)
    same(answers[0], native.chat(MESSAGES, max_tokens=4, temperature=0))
    same(answers[1], native.chat([USER], max_tokens=3, temperature=0))


def test_messages_may_be_arrays_of_objects(chat: PyFuncModel, native: GenAIModel) -> None:
    frame = pd.DataFrame({"messages": [np.array(MESSAGES, dtype=object)]})
    same(chat.predict(frame)[0], native.chat(MESSAGES, max_tokens=5, temperature=0))


def test_messages_may_have_fields_padded_with_nothing(
    chat: PyFuncModel, native: GenAIModel
) -> None:
    padded = [{**message, "name": None, "tool_calls": float("nan")} for message in MESSAGES]
    answer = chat.predict(pd.DataFrame({"messages": [padded]}))[0]
    same(answer, native.chat(MESSAGES, max_tokens=5, temperature=0))


def test_an_empty_frame_gives_no_answers(chat: PyFuncModel) -> None:
    assert chat.predict(pd.DataFrame({"messages": pd.Series([], dtype=object)})) == []


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, np.float64("nan")])
def test_a_missing_cell_is_a_parameter_that_is_not_given(chat: PyFuncModel, missing: Any) -> None:
    frame = pd.DataFrame(
        {
            "messages": [[USER], [USER]],
            "max_tokens": pd.Series([2, missing], dtype=object),
            "stop": pd.Series([missing, ["zzz"]], dtype=object),
        }
    )
    assert [used(answer) for answer in chat.predict(frame)] == [2, 5]


def test_ragged_rows_keep_their_own_parameters(chat: PyFuncModel) -> None:
    requests = [
        {"messages": [USER], "max_tokens": 2},
        {"messages": [USER]},
        {"messages": [USER], "stop": "zzz", "max_tokens": 3, "logit_bias": {"5": 1}},
        {"messages": [USER], "n": 2, "max_tokens": 1},
    ]
    assert [used(answer) for answer in chat.predict(requests)] == [2, 5, 3, 2]


@pytest.mark.parametrize(
    "value",
    [4, 4.0, np.int32(4), np.float32(4), np.array(4), np.array(4.0), Decimal(4), Decimal("4.0")],
    ids=repr,
)
def test_a_whole_number_may_come_as_any_type_of_number(chat: PyFuncModel, value: Any) -> None:
    frame = pd.DataFrame({"messages": [[USER]], "max_tokens": pd.Series([value], dtype=object)})
    assert used(chat.predict(frame)[0]) == 4


@pytest.mark.parametrize("dtype", ["int8", "float32", "Int64", "Float64", "int64[pyarrow]"])
def test_a_column_of_numbers_may_have_any_type(chat: PyFuncModel, dtype: Any) -> None:
    tokens = pd.Series([4, 2], dtype=dtype)
    frame = pd.DataFrame({"messages": [[USER], [USER]], "max_tokens": tokens})
    assert [used(answer) for answer in chat.predict(frame)] == [4, 2]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int64[pyarrow]", "float64"])
def test_a_column_of_numbers_may_have_gaps(chat: PyFuncModel, dtype: Any) -> None:
    tokens = pd.Series([None, 2], dtype=dtype)
    frame = pd.DataFrame({"messages": [[USER], [USER]], "max_tokens": tokens})
    assert [used(answer) for answer in chat.predict(frame)] == [5, 2]


def test_a_number_with_a_fraction_is_refused_where_whole_ones_belong(chat: PyFuncModel) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_tokens must be an integer.*got 2\.5"):
        chat.predict({"messages": [USER], "max_tokens": 2.5})


def test_a_number_may_be_a_decimal_of_a_database(chat: PyFuncModel, native: GenAIModel) -> None:
    frame = pd.DataFrame({"messages": [[USER]], "repetition_penalty": [Decimal("1.25")]})
    expected = native.chat([USER], repetition_penalty=1.25, max_tokens=5, temperature=0)
    same(chat.predict(frame)[0], expected)


def test_a_seed_that_has_lost_digits_is_refused(chat: PyFuncModel) -> None:
    seed = 2**60 + 1
    with pytest.raises(InvalidRequestError, match=r"seed must .*MLflow makes floats.*in the row"):
        chat.predict({"messages": [USER]}, params={"seed": seed})
    assert used(chat.predict({"messages": [USER], "seed": seed})[0]) == 5
    with pytest.raises(InvalidRequestError, match=r"temperature must .*; got 1e\+300\.$"):
        chat.predict({"messages": [USER]}, params={"temperature": 1e300})


def test_a_float_is_an_integer_as_long_as_it_has_lost_no_digits(native: GenAIModel) -> None:
    sampled = {"max_tokens": 4, "temperature": 2}
    for sign in (1, -1):
        exact = sign * (2**53 - 1)
        same(
            native.chat([USER], seed=float(exact), **sampled),
            native.chat([USER], seed=exact, **sampled),
        )
        with pytest.raises(InvalidRequestError, match="seed must be an integer"):
            native.chat([USER], seed=sign * 2.0**53)


@pytest.mark.parametrize("stop", ["e", ["e"], ("e",), np.array(["e"]), ["zzz", "e"]], ids=str)
def test_stop_may_be_a_string_or_a_list(chat: PyFuncModel, native: GenAIModel, stop: Any) -> None:
    frame = pd.DataFrame({"messages": [[USER]], "stop": pd.Series([stop], dtype=object)})
    expected = native.chat([USER], stop=["e"], max_tokens=5, temperature=0)
    assert "e" not in expected["choices"][0]["message"]["content"]
    same(chat.predict(frame)[0], expected)


def test_content_may_be_parts(chat: PyFuncModel, native: GenAIModel) -> None:
    texts = ("What is the capital", " of Spain?")
    parts = [{"type": "text", "text": text} for text in texts]
    [answer] = chat.predict({"messages": [{"role": "user", "content": parts}], **SHORT})
    same(answer, native.chat([USER], **SHORT))


def test_an_image_is_refused(chat: PyFuncModel) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    with pytest.raises(UnsupportedParameterError, match="parts of type image_url"):
        chat.predict({"messages": [{"role": "user", "content": parts}]})


def test_tools_reach_the_template(chat: PyFuncModel, native: GenAIModel) -> None:
    request = {"messages": [USER], "tools": [TOOL], **SHORT}
    expected = native.chat([USER], tools=[TOOL], **SHORT)
    same(chat.predict(request)[0], expected)
    same(chat.predict(pd.DataFrame([request]))[0], expected)


def test_a_tool_s_answer_is_a_message(chat: PyFuncModel, native: GenAIModel) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "capital", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Madrid"},
    ]
    same(
        chat.predict({"messages": messages})[0], native.chat(messages, max_tokens=5, temperature=0)
    )


@pytest.mark.parametrize("name", ["functions", "suffix", "best_of", "num_beams", "verbosity"])
def test_a_parameter_that_is_not_supported_is_refused(chat: PyFuncModel, name: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=f"{name} is not supported"):
        chat.predict({"messages": [USER], name: "auto"})


@pytest.mark.parametrize("bad", [None, [5], ["text"], [None], []], ids=repr)
def test_a_bad_cell_is_an_error_of_its_row(chat: PyFuncModel, bad: Any) -> None:
    frame = pd.DataFrame({"messages": pd.Series([[USER], bad], dtype=object)})
    good, error = chat.predict(frame, params={"on_error": "row"})
    assert used(good) == 5
    assert error["error"]["param"].startswith("messages")
    with pytest.raises(InvalidRequestError, match="row 1: messages"):
        chat.predict(frame)


def test_a_bad_row_is_named_without_its_text(chat: PyFuncModel) -> None:
    bad = {"messages": [{"role": "king", "content": "secret"}]}
    with pytest.raises(InvalidRequestError, match=r"row 1: messages\[0\]\.role") as caught:
        chat.predict([{"messages": [USER]}, bad])
    assert "secret" not in str(caught.value)


def test_a_row_without_messages_is_refused(chat: PyFuncModel) -> None:
    with pytest.raises(MlflowException, match="messages"):
        chat.predict({"prompt": PROMPT})


def test_params_hold_for_every_row(chat: PyFuncModel) -> None:
    requests = [{"messages": [USER]}, {"messages": MESSAGES}]
    assert [used(a) for a in chat.predict(requests, params={"max_tokens": 3})] == [3, 3]


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), np.float64(3)], ids=repr)
def test_a_param_may_be_any_type_of_number(chat: PyFuncModel, value: Any) -> None:
    assert used(chat.predict({"messages": [USER]}, params={"max_tokens": value})[0]) == 3


def test_rows_go_before_params_and_params_before_the_config(chat: PyFuncModel) -> None:
    frame = pd.DataFrame({"messages": [[USER]] * 3, "max_tokens": [2, None, np.nan]})
    assert [used(a) for a in chat.predict(frame)] == [2, 5, 5]
    assert [used(a) for a in chat.predict(frame, params={"max_tokens": 3})] == [2, 3, 3]


def test_a_token_limit_of_a_row_replaces_another_one_of_params(chat: PyFuncModel) -> None:
    request = {"messages": [USER], "max_completion_tokens": 2}
    assert used(chat.predict(request, params={"max_tokens": 4})[0]) == 2


def test_a_param_out_of_range_is_refused(chat: PyFuncModel) -> None:
    with pytest.raises(InvalidRequestError, match=r"params: temperature must be .*; got 3\.0"):
        chat.predict({"messages": [USER]}, params={"temperature": 3})


def test_a_stream_takes_a_frame_of_one_row(chat: PyFuncModel, native: GenAIModel) -> None:
    frame: Any = pd.DataFrame(
        [{"messages": np.array([USER]), "max_tokens": np.float64(3), **COUNTED}]
    )
    chunks: list[Any] = list(chat.predict_stream(frame))
    assert used(chunks[-1]) == used(native.chat([USER], max_tokens=3, temperature=0)) == 3


def test_a_stream_of_several_rows_is_refused(chat: PyFuncModel) -> None:
    two: Any = [{"messages": [USER]}, {"messages": [USER]}]
    with pytest.raises(MlflowException, match="single input"):
        list(chat.predict_stream(two))


def test_completions_answer_prompts(completions: PyFuncModel, native: GenAIModel) -> None:
    expected = native.complete(PROMPT, **SHORT)
    same(completions.predict({"prompt": PROMPT, **SHORT})[0], expected)
    same(completions.predict([{"prompt": PROMPT, **SHORT}])[0], expected)
    same(completions.predict(pd.DataFrame([{"prompt": PROMPT, **SHORT}]))[0], expected)


@pytest.mark.parametrize(
    "more",
    [
        {"logit_bias": {"5": -100, "6": 1.5}},
        {"stop": ["z", "q"]},
        {"echo": True, "logprobs": 2},
        {"metadata": {"a": "b", "c": "d"}, "user": "me"},
        {"stream_options": {"include_usage": True}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_an_object_with_a_nested_parameter_is_still_one_row(
    completions: PyFuncModel, native: GenAIModel, more: dict[str, Any]
) -> None:
    # A copy, because MLflow writes into nested objects that it knows the type of.
    answers = completions.predict({"prompt": PROMPT, **SHORT, **deepcopy(more)})
    assert len(answers) == 1
    same(answers[0], native.complete(PROMPT, **SHORT, **more))


def test_text_generation_takes_a_column_of_prompts(text: PyFuncModel, native: GenAIModel) -> None:
    prompts = [PROMPT, "Madrid is"]
    expected = native.generate(prompts, temperature=0, max_tokens=5)
    assert text.predict(pd.DataFrame({"prompt": prompts})) == expected
    assert text.predict([{"prompt": prompt} for prompt in prompts]) == expected


def test_a_row_of_a_frame_has_one_answer_however_many_rows_there_are(text: PyFuncModel) -> None:
    prompts = [[PROMPT, "Madrid is"], PROMPT]
    alone = text.predict(pd.DataFrame({"prompt": prompts[:1]}), params={"on_error": "row"})
    first, second = text.predict(pd.DataFrame({"prompt": prompts}), params={"on_error": "row"})
    assert "prompt must be a string" in first
    assert alone == [first]
    assert second == text.predict(PROMPT)[0]


def test_a_row_of_chats_has_one_answer_however_many_rows_there_are(chat: PyFuncModel) -> None:
    for cells in ([[[USER], [USER]]], [[[USER], [USER]], [USER]]):
        answers = chat.predict(pd.DataFrame({"messages": cells}), params={"on_error": "row"})
        assert answers[0]["error"]["param"] == "messages[0]"
        assert len(answers) == len(cells)


def test_where_mlflow_makes_frames_of_objects_a_list_of_prompts_is_a_row_each(
    demo: Path, tmp_path: Path
) -> None:
    signature = infer_signature({"prompt": [PROMPT]})
    save_model(demo, tmp_path / "model", task="text-generation", signature=signature)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    with loaded.get_raw_model():
        assert len(loaded.predict({"prompt": [PROMPT, PROMPT]}, params={"max_tokens": 1})) == 2


def test_what_is_nested_too_deep_is_an_error_of_its_row(
    chat: PyFuncModel, native: GenAIModel
) -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    bad = [{"role": "user", "content": "x", "key": deep}]
    with pytest.raises(InvalidRequestError, match="nested more than 64 levels deep"):
        native.chat(bad)
    frame = pd.DataFrame({"messages": [[USER], bad]})
    good, error = chat.predict(frame, params={"on_error": "row"})
    assert used(good) == 5
    assert error["error"]["param"] == "messages"


def test_text_generation_takes_one_object(text: PyFuncModel, native: GenAIModel) -> None:
    expected = native.generate(PROMPT, temperature=0, max_tokens=5)
    assert text.predict({"prompt": PROMPT}) == [expected]


def test_text_generation_takes_params(text: PyFuncModel, native: GenAIModel) -> None:
    params = {"max_tokens": 8, "stop": ["a"], "do_sample": False}
    expected = native.generate(PROMPT, temperature=0, max_tokens=8, stop=["a"])
    assert text.predict({"prompt": PROMPT}, params=params) == [expected]


SERVED = {
    "as OpenAI's clients send it": {"messages": [USER], "max_tokens": 3, "stop": ["zzz"]},
    "inputs": {"inputs": [{"messages": [USER], "max_tokens": 3}]},
    "inputs and params": {"inputs": {"messages": [USER]}, "params": {"max_tokens": 3}},
    "split": {"dataframe_split": {"columns": ["messages", "max_tokens"], "data": [[[USER], 3]]}},
    "records": {"dataframe_records": [{"messages": [USER], "max_tokens": 3}]},
}


# Deprecated in favour of a server in a process of its own, which takes seconds to start.
@pytest.mark.filterwarnings("ignore:``mlflow.models.utils.validate_serving_input`` is deprecated")
@pytest.mark.parametrize("payload", SERVED.values(), ids=SERVED)
def test_every_form_of_a_served_request_is_one_row(
    chat: PyFuncModel, tmp_path: Path, demo: Path, payload: dict[str, Any]
) -> None:
    save_model(demo, tmp_path / "served", model_config={"temperature": 0})
    [answer] = validate_serving_input(str(tmp_path / "served"), json.dumps(payload))
    same(answer, chat.predict({"messages": [USER], "max_tokens": 3})[0])
