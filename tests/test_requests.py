"""One table of good and one of bad requests, run through every door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import pytest
from mlflow.exceptions import MlflowException

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel

if TYPE_CHECKING:
    from pathlib import Path

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
CANARY = "canary-3141592"
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
        "text format",
        {"response_format": {"type": "text"}},
        " The capital of Spain is Madrid.",
        "stop",
        8,
    ),
]


class Bad(NamedTuple):
    """A request, and what the error must say."""

    fields: dict[str, Any]
    param: str
    says: str


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
    path = tmp_path_factory.mktemp("saved") / "chat"
    mlflow_phi3_onnx.save_model(demo, path)
    return mlflow.pyfunc.load_model(str(path), model_config={"loop": loop})


Door = Callable[[dict[str, Any]], tuple[str, str, dict[str, int]]]


def whole(response: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
    choice = response["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], counts(response["usage"])


def counts(usage: dict[str, Any]) -> dict[str, int]:
    """The usage without how much of the prompt was found in a cache."""
    return {name: count for name, count in usage.items() if name != "prompt_tokens_details"}


def pieces(chunks: Iterator[dict[str, Any]]) -> tuple[str, str, dict[str, int]]:
    seen = list(chunks)
    first, ending, last = seen[0], seen[-2], seen[-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert ending["choices"][0]["delta"] == {}
    assert last["choices"] == []
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in seen}) == 1
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in seen[:-2])
    return text, ending["choices"][0]["finish_reason"], counts(last["usage"])


@pytest.fixture(scope="module")
def doors(model: GenAIModel, pyfunc: Any) -> dict[str, Door]:
    return {
        "native": lambda fields: whole(model.chat(**fields)),
        "native stream": lambda fields: pieces(model.stream_chat(**fields)),
        "pyfunc": lambda fields: whole(pyfunc.predict(fields)[0]),
        "pyfunc stream": lambda fields: pieces(pyfunc.predict_stream(fields)),
    }


DOORS = ["native", "native stream", "pyfunc", "pyfunc stream"]


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


def bad_id(case: Bad) -> str:
    return f"{case.param}: {case.says}"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", BAD, ids=bad_id)
def test_bad_requests(doors: dict[str, Door], door: str, case: Bad) -> None:
    with pytest.raises(MlflowException) as caught:
        doors[door](case.fields)
    check_error(caught.value, case)


@pytest.mark.parametrize("door", ["native", "native stream"])
@pytest.mark.parametrize("case", BAD_NATIVE_ONLY, ids=bad_id)
def test_bad_requests_that_mlflow_does_not_pass_on(
    doors: dict[str, Door], door: str, case: Bad
) -> None:
    with pytest.raises(MlflowException) as caught:
        doors[door](case.fields)
    check_error(caught.value, case)


def check_error(error: MlflowException, case: Bad) -> None:
    assert isinstance(error, mlflow_phi3_onnx.InvalidRequestError)
    assert case.says in error.message
    assert (error.param or "") == case.param
    assert error.status == 400
    assert CANARY not in error.message
    assert CANARY not in str(error.to_openai())


def test_an_error_keeps_its_message_when_the_server_quotes_the_input() -> None:
    error = mlflow_phi3_onnx.InvalidRequestError("temperature must be a number.")
    error.message = f"Failed to predict data '{CANARY}'"
    assert error.message == "temperature must be a number."
    assert CANARY not in error.serialize_as_json()


@pytest.mark.parametrize("door", ["native", "pyfunc"])
def test_stream_true_is_refused_by_a_plain_prediction(doors: dict[str, Door], door: str) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match="predict_stream"):
        doors[door]({"messages": SPAIN, "stream": True})


@pytest.mark.parametrize("door", ["native stream", "pyfunc stream"])
def test_stream_true_is_fine_for_a_stream(doors: dict[str, Door], door: str) -> None:
    assert doors[door]({"messages": SPAIN, "stream": True})[1] == "stop"


def test_a_stream_without_usage(model: GenAIModel) -> None:
    chunks = list(model.stream_chat(SPAIN, stream_options={"include_usage": False}))
    assert all("usage" not in chunk for chunk in chunks)


def test_n_answers_differ_when_sampled_and_repeat_with_the_seed(model: GenAIModel) -> None:
    def ask() -> list[str]:
        response = model.chat(
            [{"role": "user", "content": "zzz qqq"}], n=6, temperature=2, seed=11, max_tokens=12
        )
        assert [choice["index"] for choice in response["choices"]] == list(range(6))
        assert response["usage"]["completion_tokens"] <= 6 * 12
        return [choice["message"]["content"] for choice in response["choices"]]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_n_streams_are_told_apart_by_index(model: GenAIModel) -> None:
    texts = ["", ""]
    for chunk in model.stream_chat(SPAIN, n=2):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [" The capital of Spain is Madrid."] * 2


def test_one_bad_row_is_named_and_nothing_is_computed(pyfunc: Any) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match=r"^row 1: messages\[0\].role"):
        pyfunc.predict([{"messages": SPAIN}, {"messages": [{"role": "x", "content": "y"}]}])


def test_completions(model: GenAIModel) -> None:
    response = model.complete("The capital of Spain is", echo=True, max_tokens=4)
    assert response["object"] == "text_completion"
    assert response["choices"][0]["text"].startswith("The capital of Spain is")
    assert "Madrid" in response["choices"][0]["text"]
    chunks = list(model.stream_complete("The capital of Spain is", max_tokens=4))
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert "The capital of Spain is" + text == response["choices"][0]["text"]
    assert counts(chunks[-1]["usage"]) == counts(response["usage"])


def test_completions_through_pyfunc_take_objects(demo: Path, tmp_path: Path) -> None:
    mlflow_phi3_onnx.save_model(demo, tmp_path / "saved", task="llm/v1/completions")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    request = {"prompt": "The capital of Spain is", "logit_bias": {"5": 0, "6": 0}}
    response: Any = loaded.predict({**request, "metadata": {"a": "b"}})[0]
    assert response["choices"][0]["text"] == " Madrid."
    chunks: list[Any] = list(
        loaded.predict_stream({**request, "stream_options": {"include_usage": False}})
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " Madrid."


@pytest.mark.parametrize("prompt", [None, 5, ["a"], ""])
def test_bad_prompts(model: GenAIModel, prompt: Any) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match="prompt"):
        model.complete(prompt)


def test_control_tokens_in_a_whole_prompt_are_control_tokens(model: GenAIModel) -> None:
    prompt = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
    assert model.generate(prompt) == " The capital of Spain is Madrid."
    assert "".join(model.stream_generate(prompt)) == " The capital of Spain is Madrid."


def test_logprobs(model: GenAIModel) -> None:
    choice = model.chat(SPAIN, logprobs=True, top_logprobs=3)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    assert len(entries) == 7
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
    assert "logprobs" not in model.chat(SPAIN)["choices"][0]


def test_min_tokens_holds_back_the_end(model: GenAIModel) -> None:
    response = model.chat(SPAIN, min_tokens=15, max_tokens=20)
    assert response["usage"]["completion_tokens"] >= 15


def test_logit_bias_bans_a_token(model: GenAIModel) -> None:
    banned = model.chat(SPAIN, logprobs=True)["choices"][0]["logprobs"]["content"][0]["token"]
    first = model.complete("<|user|>\nx<|end|>\n<|assistant|>\n", logprobs=0, max_tokens=1)
    assert first["choices"][0]["text"]
    tokens = {str(i): -100 for i in range(900)}
    changed = model.chat(SPAIN, logit_bias=tokens, max_tokens=1)["choices"][0]["message"]["content"]
    assert changed != banned


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


def test_a_tool_call(model: GenAIModel) -> None:
    choice = model.chat(WEATHER, tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    answer = model.chat(
        [
            *WEATHER,
            choice["message"],
            {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature": 21}'},
        ],
        tools=TOOLS,
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "21" in answer["choices"][0]["message"]["content"]


def test_a_streamed_tool_call(model: GenAIModel) -> None:
    deltas = [
        chunk["choices"][0]["delta"]
        for chunk in model.stream_chat(WEATHER, tools=TOOLS)
        if chunk["choices"]
    ]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls] == ["get_weather"]
    assert not any(delta.get("content") for delta in deltas)


def test_tool_choice_none_hides_the_tools(model: GenAIModel) -> None:
    with_none = model.chat(WEATHER, tools=TOOLS, tool_choice="none")
    assert with_none["usage"]["prompt_tokens"] == model.chat(WEATHER)["usage"]["prompt_tokens"]
