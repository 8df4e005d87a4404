"""One table of good and one of bad requests, run through every door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from doors import (
    CANARY,
    DOORS,
    SPAIN,
    STREAMS,
    WHOLE,
    Bad,
    Door,
    bad_id,
    chat_doors,
    check_error,
    saved,
)
from mlflow.exceptions import MlflowException

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel

if TYPE_CHECKING:
    from pathlib import Path

PROMPT_TOKENS = 10


class Good(NamedTuple):
    """A request, and what its answer must be."""

    name: str
    fields: dict[str, Any]
    text: str
    finish_reason: str
    tokens: int


GOOD = [
    Good("plain", {}, " The capital of Spain is Madrid.", "stop", 8),
    Good("max_tokens", {"max_tokens": 3}, " The capital of", "length", 3),
    Good("max_tokens as a float", {"max_tokens": 3.0}, " The capital of", "length", 3),
    Good("max_completion_tokens", {"max_completion_tokens": 2}, " The capital", "length", 2),
    Good("max_length", {"max_length": PROMPT_TOKENS + 4}, " The capital of Spain", "length", 4),
    Good("stop inside a token", {"stop": "pain"}, " The capital of S", "stop", 4),
    Good("stop across tokens", {"stop": ["tal of S"]}, " The capi", "stop", 4),
    Good("stop at the start", {"stop": [" The"]}, "", "stop", 1),
    Good("the earliest of several stops", {"stop": ["Spain", "of"]}, " The capital ", "stop", 3),
    Good(
        "a stop that never comes", {"stop": ["Rome"]}, " The capital of Spain is Madrid.", "stop", 8
    ),
    Good(
        "temperature 0",
        {"temperature": 0, "top_p": 0.5},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good("top_k 1", {"temperature": 2, "top_k": 1}, " The capital of Spain is Madrid.", "stop", 8),
    Good("top_p 0", {"temperature": 2, "top_p": 0}, " The capital of Spain is Madrid.", "stop", 8),
    Good("do_sample false", {"do_sample": False}, " The capital of Spain is Madrid.", "stop", 8),
    Good(
        "null is not given",
        {"stop": None, "seed": None},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "unused",
        {"model": "x", "user": "y", "store": True},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "a prediction",
        {"prediction": {"type": "content", "content": "The capital of Spain is Madrid."}},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "a prediction that is wrong, and of parts",
        {"prediction": {"type": "content", "content": [{"type": "text", "text": "of Italy"}]}},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "prompt lookup",
        {"prompt_lookup_num_tokens": 4},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good("a timeout", {"timeout": 600.5, "max_tokens": 2}, " The capital", "length", 2),
    Good(
        "text format",
        {"response_format": {"type": "text"}},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
]


def parameter(name: str, value: Any, says: str) -> Bad:
    return Bad({"messages": SPAIN, name: value}, name, says)


def messages(value: Any, param: str, says: str) -> Bad:
    return Bad({"messages": value}, param, says)


BAD = [
    messages([], "messages", "at least one message"),
    messages(["hello"], "messages[0]", "an object with role and content; got a string"),
    messages([{"content": CANARY}], "messages[0].role", "one of system, developer, user"),
    messages([{"role": "robot", "content": CANARY}], "messages[0].role", "one of system"),
    messages([{"role": "user"}], "messages[0].content", "it is missing"),
    messages([{"role": "user", "content": None}], "messages[0].content", "it is missing"),
    messages([{"role": "user", "content": 5}], "messages[0].content", "got 5"),
    messages([*SPAIN, {"role": "user", "content": {}}], "messages[1].content", "got an object"),
    messages([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "type 'text'"),
    messages(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CANARY}}]}],
        "messages[0].content[0]",
        "image_url are not supported",
    ),
    messages([{"role": "user", "content": "\ud800"}], "messages", "lone surrogate (U+D800)"),
    messages([{"role": "user", "content": "x", "name": 5}], "messages[0].name", "must be a string"),
    messages(
        [{"role": "user", "content": "x", "tool_calls": []}],
        "messages[0].tool_calls",
        "only to assistant messages",
    ),
    messages(
        [{"role": "assistant", "tool_calls": [{"id": "x"}]}],
        "messages[0].tool_calls[0]",
        "a function that has a name",
    ),
    messages([{"role": "user", "content": CANARY * 2000}], "", "maximum context length is 4,096"),
    parameter("temperature", -0.1, "a number from 0 to 2; got -0.1"),
    parameter("temperature", 2.1, "a number from 0 to 2; got 2.1"),
    parameter("temperature", float("inf"), "got inf"),
    parameter("temperature", CANARY, "got a string"),
    parameter("temperature", True, "got True"),
    parameter("top_p", 1.5, "a number from 0 to 1"),
    parameter("top_k", -2, "an integer from -1"),
    parameter("top_k", 1.5, "an integer from -1"),
    parameter("min_p", -1, "a number from 0 to 1"),
    parameter("seed", 2**63, "an integer of 64 bits"),
    parameter("seed", "7", "got a string"),
    parameter("max_tokens", 0, "an integer from 1; got 0"),
    parameter("max_tokens", -1, "an integer from 1; got -1"),
    parameter("max_tokens", 1e308, "an integer from 1"),
    parameter("max_tokens", 5000, "together 5,010; the model's maximum context length is 4,096"),
    parameter("max_length", 5000, "maximum context length is 4,096"),
    parameter("max_length", 5, "The prompt has 10 tokens; max_length is 5"),
    parameter("n", 0, "an integer from 1 to 128"),
    parameter("n", 129, "an integer from 1 to 128"),
    parameter("stop", "", "of 1 to 1,024 characters"),
    parameter("stop", [1], "a string, or a list"),
    parameter("stop", ["x"] * 17, "at most 16 strings"),
    parameter("stop", "x" * 1025, "of 1 to 1,024 characters"),
    parameter("repetition_penalty", 0, "a number above 0"),
    parameter("presence_penalty", 2.5, "a number from -2 to 2"),
    parameter("frequency_penalty", -2.5, "a number from -2 to 2"),
    parameter("logit_bias", {"x": 1}, "token ids"),
    parameter("logit_bias", {"1": 101}, "from -100 to 100"),
    parameter("logit_bias", {"99999": 1}, "token ids below"),
    parameter("logprobs", 1, "true or false"),
    parameter("top_logprobs", 3, "needs logprobs"),
    parameter("min_tokens", 5000, "min_tokens is 5,000"),
    parameter("do_sample", 1, "true or false"),
    parameter("tools", {}, "a list of at most 128 objects"),
    parameter("tools", [{"type": "function"}], "a function with a name"),
    parameter("tools", [{"type": "function", "function": {"name": "f"}}] * 129, "at most 128"),
    parameter("tool_choice", "any", "'none', 'auto', 'required' or {'type'"),
    parameter("tool_choice", {"type": "function", "name": CANARY}, "got an object"),
    parameter("response_format", {"type": "xml"}, "'json_object' or 'json_schema'"),
    parameter("response_format", {"type": "json_schema"}, "an object with a schema"),
    parameter("regex", "", "a string of 1 to 8,192 characters"),
    parameter("regex", "(a", "regex cannot be used as a grammar: unclosed group."),
    parameter("grammar", 5, "a string of 1 to 32,768 characters"),
    parameter("grammar", f"start: /[{CANARY}/", "grammar cannot be used as a grammar"),
    parameter("choice", [], "a list of 1 to 1,000 strings"),
    parameter("choice", ["a", 5], "a list of 1 to 1,000 strings"),
    parameter("parallel_tool_calls", "no", "true or false"),
    parameter("stream_options", {"x": 1}, "include_usage"),
    parameter("timeout", 0, "a number above 0; got 0"),
    parameter("prompt_lookup_num_tokens", 17, "an integer from 0 to 16"),
    parameter("prediction", CANARY, "got a string"),
    parameter("prediction", {"type": "text", "content": "x"}, "an object with type 'content'"),
    parameter("prediction", {"type": "content", "content": 5}, "a string or a list of text parts"),
    parameter("prediction", {"type": "content", "content": "\ud800"}, "Unicode characters"),
    Bad(
        {
            "messages": SPAIN,
            "prediction": {"type": "content", "content": [{"type": "image_url", "x": CANARY}]},
        },
        "prediction.content[0]",
        "image_url are not supported",
    ),
    Bad(
        {
            "messages": SPAIN,
            "prediction": {"type": "content", "content": "x"},
            "prompt_lookup_num_tokens": 0,
        },
        "prediction",
        "of no use",
    ),
    parameter("audio", {}, "Only text can be generated"),
    parameter("functions", [], "use tools"),
    parameter("best_of", 2, "Use n"),
    parameter("suffix", "x", "put it into the prompt"),
    parameter("max_new_tokens", 5, "Use max_tokens"),
    parameter("num_beams", 4, "use temperature 0"),
    parameter("truncation", True, "never cut"),
    Bad(
        {"messages": SPAIN, "max_tokens": 1, "max_completion_tokens": 1},
        "max_completion_tokens",
        "mean the same",
    ),
]

# MLflow drops a column that is not in the signature, with a warning, before the flavor sees it.
BAD_NATIVE_ONLY = [
    parameter("temprature", 1, "Did you mean temperature?"),
    parameter("temperature", float("nan"), "got nan"),
    messages(None, "messages", "messages is missing"),
    messages(CANARY, "messages", "got a string"),
]


@pytest.fixture(scope="module")
def pyfunc(demo: Path, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return saved(demo, tmp_path_factory.mktemp("saved") / "chat", "llm/v1/chat", loop)


@pytest.fixture(scope="module")
def doors(model: GenAIModel, pyfunc: Any) -> dict[str, Door]:
    return chat_doors(model, pyfunc)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_requests(doors: dict[str, Door], door: str, case: Good) -> None:
    text, reason, usage = doors[door]({"messages": SPAIN, **case.fields})
    assert text == case.text
    assert reason == case.finish_reason
    assert usage == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": case.tokens,
        "total_tokens": PROMPT_TOKENS + case.tokens,
    }


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", BAD, ids=bad_id)
def test_bad_requests(doors: dict[str, Door], door: str, case: Bad) -> None:
    with pytest.raises(MlflowException) as caught:
        doors[door](case.fields)
    check_error(caught.value, case)


@pytest.mark.parametrize("door", ["native", "native stream", "async", "async stream"])
@pytest.mark.parametrize("case", BAD_NATIVE_ONLY, ids=bad_id)
def test_bad_requests_that_mlflow_does_not_pass_on(
    doors: dict[str, Door], door: str, case: Bad
) -> None:
    with pytest.raises(MlflowException) as caught:
        doors[door](case.fields)
    check_error(caught.value, case)


def test_an_error_keeps_its_message_when_the_server_quotes_the_input() -> None:
    error = mlflow_phi3_onnx.InvalidRequestError("temperature must be a number.")
    error.message = f"Failed to predict data '{CANARY}'"
    assert error.message == "temperature must be a number."
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
