"""One table of good and one of bad requests, run through every door."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.exceptions import MlflowException

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel
from tests.support.doors import (
    CANARY,
    DOORS,
    ONE_LOOP,
    REPORTED,
    SPAIN,
    STREAMS,
    WHOLE,
    Answer,
    Bad,
    Door,
    bad_id,
    chat_doors,
    check_same,
    crowd,
    refused_everywhere,
    saved,
)
from tests.support.table import BAD, BAD_NATIVE_ONLY, GOOD, SAME, Good, check_good

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pyfunc(demo: Path, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return saved(demo, tmp_path_factory.mktemp("saved") / "chat", "llm/v1/chat", loop)


@pytest.fixture(scope="module")
def doors(model: GenAIModel, pyfunc: Any) -> dict[str, Door]:
    return chat_doors(model, pyfunc)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_requests(doors: dict[str, Door], door: str, case: Good) -> None:
    check_good(doors[door]({"messages": SPAIN, **case.fields}), case)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("number", range(len(SAME)))
def test_requests_are_answered_the_same_everywhere(
    doors: dict[str, Door], references: list[Answer], door: str, number: int
) -> None:
    check_same(doors[door]({**SAME[number], **REPORTED}), references[number])


def test_requests_are_answered_the_same_beside_seven_others(
    model: GenAIModel, doors: dict[str, Door], references: list[Answer]
) -> None:
    """Through all doors at once, so beside each other too."""

    def check(door: Door) -> None:
        for case in GOOD:
            check_good(door({"messages": SPAIN, **case.fields}), case)
        for fields, reference in zip(SAME, references, strict=True):
            check_same(door({**fields, **REPORTED}), reference)

    with crowd(lambda fields: model.chat(**fields)), ThreadPoolExecutor(len(doors)) as pool:
        for checked in [pool.submit(check, door) for door in doors.values()]:
            checked.result()


@ONE_LOOP
@pytest.mark.parametrize("case", BAD, ids=bad_id)
def test_bad_requests(doors: dict[str, Door], case: Bad) -> None:
    refused_everywhere(doors.values(), case)


@ONE_LOOP
@pytest.mark.parametrize("case", BAD_NATIVE_ONLY, ids=bad_id)
def test_bad_requests_that_mlflow_does_not_pass_on(doors: dict[str, Door], case: Bad) -> None:
    native = ["native", "native stream", "async", "async stream"]
    refused_everywhere([doors[door] for door in native], case)


def test_an_error_keeps_its_message_when_the_server_quotes_the_input() -> None:
    error = mlflow_phi3_onnx.InvalidRequestError("temperature must be a number.")
    error.message = f"Failed to predict data '{CANARY}'"
    assert error.message == "temperature must be a number."
    assert isinstance(error, MlflowException)
    assert CANARY not in error.serialize_as_json()


@pytest.mark.parametrize("door", DOORS)
def test_an_answer_that_is_not_in_time_is_an_error(doors: dict[str, Door], door: str) -> None:
    with pytest.raises(mlflow_phi3_onnx.GenerationTimeoutError):
        doors[door]({"messages": SPAIN, "min_tokens": 1000, "timeout": 1e-6})


@pytest.mark.parametrize("door", WHOLE)
def test_stream_true_is_refused_by_a_plain_prediction(doors: dict[str, Door], door: str) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match="predict_stream"):
        doors[door]({"messages": SPAIN, "stream": True})


@pytest.mark.parametrize("door", STREAMS)
def test_stream_false_is_refused_by_a_stream(doors: dict[str, Door], door: str) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match="Use predict"):
        doors[door]({"messages": SPAIN, "stream": False})


@pytest.mark.parametrize("door", STREAMS)
def test_stream_true_is_fine_for_a_stream(doors: dict[str, Door], door: str) -> None:
    assert doors[door]({"messages": SPAIN, "stream": True})[1] == "stop"


def test_one_bad_row_is_named_and_nothing_is_computed(pyfunc: Any) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match=r"^row 1: messages\[0\].role"):
        pyfunc.predict([{"messages": SPAIN}, {"messages": [{"role": "x", "content": "y"}]}])
