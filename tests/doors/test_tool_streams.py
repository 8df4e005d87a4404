"""Tool calls while they are written: OpenAI's stream, and the same calls as in a whole answer."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlflow_phi3_onnx import GenAIModel
from tests.support.tool_cases import TOOLS, WEATHER, closed, named, tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CITIES = [{"role": "user", "content": "What is the weather in Paris and Rome?"}]
CITY = closed(city={"type": "string", "maxLength": 20})
GET_WEATHER = [tool("get_weather", CITY, description="Get the weather in a city.")]
STRICT = [tool("get_weather", CITY, description="Get the weather in a city.", strict=True)]

FORMS = {
    "Phi-4-mini": ("<|tool_call|>", "<|/tool_call|>"),
    "Hermes": ("<tool_call>", "</tool_call>"),
    "Llama 3": ("<|call|>", "<|/call|>"),
}
"""What the tokens that mark a call are called: that tells the format. Llama 3's is set."""


@pytest.fixture(scope="module", params=FORMS)
def any_form(
    demo: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[GenAIModel]:
    """The demo model as one of each form."""
    folder = tmp_path_factory.mktemp("form") / "model"
    shutil.copytree(demo, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in zip(FORMS["Phi-4-mini"], FORMS[request.param], strict=True):
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    config = {"tool_format": "llama3"} if request.param == "Llama 3" else None
    with GenAIModel(folder, model_config=config) as loaded:
        yield loaded


def streamed(model: GenAIModel, messages: Any, **fields: Any) -> dict[str, Any]:
    """Return the answer that OpenAI's own client puts together from the chunks."""
    state = ChatCompletionStreamState()
    for chunk in model.stream_chat(messages, **fields):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    return state.current_completion_snapshot.model_dump(exclude_none=True)


def whole(model: GenAIModel, messages: Any, **fields: Any) -> dict[str, Any]:
    answer = ChatCompletion.model_validate(model.chat(messages, **fields))
    return answer.model_dump(exclude_none=True)


def told(answer: dict[str, Any]) -> list[Any]:
    """Return what the choices of an answer tell: their text, calls, reasons and logprobs."""
    choices: list[Any] = []
    for choice in answer["choices"]:
        message = choice["message"]
        calls = message.get("tool_calls") or []
        assert len({call["id"] for call in calls}) == len(calls)
        functions = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        choices.append(
            (
                message.get("content") or "",
                functions,
                choice["finish_reason"],
                choice.get("logprobs"),
            )
        )
    return choices


ENFORCED: dict[str, dict[str, Any]] = {
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "named": {"tools": TOOLS, "tool_choice": named("add_numbers")},
    "one": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "sampled": {"tools": TOOLS, "tool_choice": "required", "temperature": 1.5, "seed": 3, "n": 2},
    "strict": {"tools": STRICT},
    "one or none": {"tools": GET_WEATHER, "parallel_tool_calls": False},
}


@pytest.mark.parametrize("fields", ENFORCED.values(), ids=ENFORCED)
def test_enforced_calls_of_every_form_are_streamed(
    any_form: GenAIModel, fields: dict[str, Any]
) -> None:
    answer = whole(any_form, WEATHER, max_tokens=400, **fields)
    assert told(streamed(any_form, WEATHER, max_tokens=400, **fields)) == told(answer)
    if "tool_choice" in fields:
        for _, calls, reason, _ in told(answer):
            assert calls
            assert reason in ("tool_calls", "length")


@pytest.mark.parametrize("question", [WEATHER, CITIES], ids=["one call", "two calls"])
def test_a_call_is_passed_on_while_it_is_written(model: GenAIModel, question: Any) -> None:
    chunks = model.stream_chat(question, tools=GET_WEATHER)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    first, *between, last = choices
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert last == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    assert all(choice["finish_reason"] is None for choice in [first, *between])
    assert all(choice["delta"].keys() == {"tool_calls"} for choice in between)
    deltas = [call for choice in between for call in choice["delta"]["tool_calls"]]
    heads = [delta for delta in deltas if "id" in delta]
    assert len(heads) == (1 if question is WEATHER else 2)
    for index, head in enumerate(heads):
        function = {"name": "get_weather", "arguments": ""}
        assert head == {"index": index, "id": head["id"], "type": "function", "function": function}
        pieces = [delta for delta in deltas if delta["index"] == index and delta is not head]
        assert all(piece.keys() == {"index", "function"} for piece in pieces)
        assert all(piece["function"].keys() == {"arguments"} for piece in pieces)
        assert len(pieces) > 3
        arguments = "".join(piece["function"]["arguments"] for piece in pieces)
        assert json.loads(arguments) == {"city": ["Paris", "Rome"][index]}
    assert [delta["index"] for delta in deltas] == sorted(delta["index"] for delta in deltas)


def test_a_call_s_name_is_known_before_the_answer_is_over(model: GenAIModel) -> None:
    stream = model.stream_chat(WEATHER, tools=GET_WEATHER)
    seen = next(chunk for chunk in stream if "tool_calls" in chunk["choices"][0]["delta"])
    assert seen["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "get_weather"
    rest = [choice for chunk in stream for choice in chunk["choices"]]
    assert len([choice for choice in rest if "tool_calls" in choice["delta"]]) > 3


@pytest.mark.parametrize(
    "fields",
    [{"tools": GET_WEATHER}, {"tools": GET_WEATHER, "tool_choice": "required"}],
    ids=["free", "held"],
)
def test_a_token_limit_cuts_a_stream_where_it_cuts_an_answer(
    model: GenAIModel, fields: dict[str, Any]
) -> None:
    full = told(whole(model, CITIES, max_tokens=300, **fields))[0]
    seen: set[str] = set()
    for limit in range(1, 36, 3):
        answer = whole(model, CITIES, max_tokens=limit, **fields)
        assert told(streamed(model, CITIES, max_tokens=limit, **fields)) == told(answer)
        ((text, calls, reason, _),) = told(answer)
        assert reason == "length"
        seen.add("text" if text else "calls" if calls else "")
        if calls:
            *before, (name, arguments) = calls
            assert before == full[1][: len(before)]
            assert name == full[1][len(before)][0]
            assert full[1][len(before)][1].startswith(arguments)
    assert seen >= {"text", "calls"}


def test_a_call_that_is_cut_before_its_name_is_text(model: GenAIModel) -> None:
    fields = {"tools": GET_WEATHER, "max_tokens": 4}
    choice = model.chat(WEATHER, **fields)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("<|tool_call|>")
    assert "tool_calls" not in choice["message"]


def test_a_stop_sequence_cuts_both_alike(model: GenAIModel) -> None:
    fields = {"tools": GET_WEATHER, "stop": ["aris"]}
    answer = whole(model, WEATHER, **fields)
    ((text, calls, reason, _),) = told(answer)
    assert (text, calls, reason) == ("", [("get_weather", '{"city": "P')], "tool_calls")
    assert told(streamed(model, WEATHER, **fields)) == told(answer)


def test_every_token_of_a_call_has_its_logprob(model: GenAIModel) -> None:
    fields = {"tools": GET_WEATHER, "logprobs": True, "top_logprobs": 1}
    answer = whole(model, CITIES, **fields)
    assert told(streamed(model, CITIES, **fields)) == told(answer)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).startswith("<|tool_call|>")


def test_text_is_streamed_where_there_are_tools(model: GenAIModel) -> None:
    joke = [{"role": "user", "content": "Tell me a joke about atom"}]
    answer = whole(model, joke, tools=GET_WEATHER)
    assert told(streamed(model, joke, tools=GET_WEATHER)) == told(answer)
    chunks = list(model.stream_chat(joke, tools=GET_WEATHER))
    assert len([c for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")]) > 3


def test_the_client_reads_strict_arguments(model: GenAIModel) -> None:
    state: Any = ChatCompletionStreamState(input_tools=STRICT)  # type: ignore[arg-type] - plain dicts
    for chunk in model.stream_chat(WEATHER, tools=STRICT):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    (call,) = state.get_final_completion().choices[0].message.tool_calls
    assert call.function.parsed_arguments == {"city": "Paris"}
