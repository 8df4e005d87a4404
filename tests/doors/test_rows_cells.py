"""Single cells: what stands in a data frame, and what a request has for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_phi3_onnx import InvalidRequestError
from mlflow_phi3_onnx.flavor.rows import clean_params, rows

if TYPE_CHECKING:
    from mlflow_phi3_onnx.core.tasks import Task


def test_without_a_signature_prompts_may_come_bare() -> None:
    expected = [{"prompt": "a"}, {"prompt": "b"}]
    for data in (["a", "b"], pd.Series(["a", "b"]), np.array(["a", "b"])):
        assert rows(data, "text-generation") == expected
    assert rows("a", "text-generation") == expected[:1]
    assert rows(pd.DataFrame({"any name": ["a", "b"]}), "text-generation") == expected


@pytest.mark.parametrize("data", [7, None, b"bytes", pytest.param(object(), id="object")], ids=repr)
def test_what_is_no_row_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be a data frame, an object with prompt"):
        rows(data, "text-generation")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]], [1, 2]], ids=repr)
def test_a_row_of_a_frame_is_one_request_however_many_rows_there_are(
    prompt: list[Any], count: int
) -> None:
    cell = np.empty(len(prompt), dtype=object)
    cell[:] = prompt
    frame = pd.DataFrame({"prompt": [cell] * count})
    assert rows(frame, "llm/v1/completions") == [{"prompt": prompt}] * count


@pytest.mark.parametrize("packed", [True, False])
def test_a_frame_of_one_row_is_an_object_only_where_mlflow_makes_frames(packed: bool) -> None:
    texts = pd.DataFrame({"prompt": [["a", "b"]], "max_tokens": [5]})
    assert len(rows(texts, "text-generation", packed=packed)) == (2 if packed else 1)
    assert len(rows(pd.concat([texts, texts]), "text-generation", packed=packed)) == 2


@pytest.mark.parametrize("packed", [True, False])
def test_a_list_of_chats_is_several_rows_only_as_mlflow_s_server_gives_it(packed: bool) -> None:
    chats = [[{"role": "user"}], [{"role": "tool"}]]
    of_arrow = np.empty(2, dtype=object)
    of_arrow[:] = [np.array(chat, dtype=object) for chat in chats]
    for cell in (chats, of_arrow):
        (row,) = rows(pd.DataFrame({"messages": [cell]}), "llm/v1/chat", packed=packed)
        assert row == {"messages": chats}
    instances = pd.DataFrame({"messages": [np.array(chats, dtype=object)]})
    assert len(rows(instances, "llm/v1/chat", packed=packed)) == (2 if packed else 1)


def test_a_name_that_two_columns_have_is_refused() -> None:
    frame = pd.DataFrame([["a", "b", 5]], columns=["prompt", "prompt", "max_tokens"])
    with pytest.raises(InvalidRequestError, match="several columns of one name") as caught:
        rows(frame, "text-generation")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("task", ["text-generation", "llm/v1/completions"])
def test_inputs_hold_any_form_of_prompts(task: Task) -> None:
    two = [{"prompt": "a"}, {"prompt": "b"}]
    assert rows({"inputs": "a"}, task) == two[:1]
    assert rows({"inputs": {"prompt": "a", "max_tokens": 5}}, task) == [{**two[0], "max_tokens": 5}]
    for data in (["a", "b"], np.array(["a", "b"]), pd.Series(["a", "b"]), two):
        assert rows({"inputs": data}, task) == two


@pytest.mark.parametrize("task", ["text-generation", "llm/v1/completions"])
def test_an_object_may_hold_a_series_with_a_prompt_a_row(task: Task) -> None:
    data = {"prompt": pd.Series(["a", "b"], index=[7, 7]), "max_tokens": pd.Series([5, 6])}
    expected = [{"prompt": "a", "max_tokens": 5}, {"prompt": "b", "max_tokens": 6}]
    assert rows(data, task) == expected


def test_columns_without_names_are_refused() -> None:
    frame = pd.DataFrame({"0": ["a"], "1": [5]})
    with pytest.raises(InvalidRequestError, match=r"The 2 columns have no names.*struct\("):
        rows(frame, "text-generation")
    assert rows(frame[["0"]], "text-generation") == [{"prompt": "a"}]


def test_params_that_mlflow_filled_in_are_left_out() -> None:
    params = {"temperature": None, "stop": [], "top_p": np.float64("nan"), "seed": np.float64(3)}
    assert clean_params(params) == {"seed": 3}
    assert clean_params(None) == {}


MISSING = object()
WHOLE = st.integers(-(2**53), 2**53)
REAL = st.floats(allow_nan=False)
TEXT = st.text().filter(lambda text: not text.lstrip().startswith("["))  # may be messages as JSON
NAMES = st.sampled_from(["messages", "stop", "seed", "tools", "logit_bias", "user"])

# What stands in a cell, and what a row has for it.
CELLS: st.SearchStrategy[tuple[Any, Any]] = st.one_of(
    st.sampled_from([None, float("nan"), pd.NA, pd.NaT, np.float32("nan")]).map(
        lambda cell: (cell, MISSING)
    ),
    st.one_of(WHOLE, REAL, st.booleans(), TEXT).map(lambda value: (value, value)),
    WHOLE.map(lambda value: (np.int64(value), value)),
    REAL.map(lambda value: (np.float64(value), value)),
    st.booleans().map(lambda value: (np.bool_(value), value)),
    st.lists(st.text(min_size=1)).map(lambda value: (np.array(value, dtype=object), value)),
    st.lists(WHOLE).map(lambda value: (tuple(map(np.int64, value)), value)),
    st.dictionaries(st.text(), WHOLE).map(
        lambda value: ({k: np.int64(v) for k, v in value.items()}, value)
    ),
)
RECORDS = st.lists(st.dictionaries(NAMES, CELLS, min_size=1), min_size=1, max_size=4)


def expected_rows(records: list[dict[str, tuple[Any, Any]]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, (_, value) in record.items() if value is not MISSING}
        for record in records
    ]


def cells(records: list[dict[str, tuple[Any, Any]]]) -> list[dict[str, Any]]:
    return [{name: cell for name, (cell, _) in record.items()} for record in records]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (' [{"role": "user", "content": "a"}]', [{"role": "user", "content": "a"}]),
        ("[]", []),
        ("0", "0"),
        ('{"role": "user"}', '{"role": "user"}'),
        ("[1", "[1"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_messages_may_be_the_json_text_of_a_list(text: str, messages: Any) -> None:
    assert rows([{"messages": text}], "llm/v1/chat") == [{"messages": messages}]


@given(RECORDS)
def test_missing_fields_vanish_from_objects_and_values_survive(
    records: list[dict[str, tuple[Any, Any]]],
) -> None:
    assert rows(cells(records), "llm/v1/chat") == expected_rows(records)


@given(RECORDS)
def test_missing_fields_vanish_from_frames_and_values_survive(
    records: list[dict[str, tuple[Any, Any]]],
) -> None:
    frame = pd.DataFrame(cells(records))
    assert rows(frame, "llm/v1/chat") == expected_rows(records)


@given(RECORDS)
def test_rows_hold_only_what_json_holds(records: list[dict[str, tuple[Any, Any]]]) -> None:
    found = rows(cells(records), "llm/v1/chat")
    assert json.loads(json.dumps(found)) == found
