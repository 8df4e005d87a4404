"""What a chat's answer has: several choices, log-probabilities, tool calls, and its usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.doors import COUNTED, SPAIN, counts

if TYPE_CHECKING:
    from mlflow_phi3_onnx import GenAIModel


@pytest.mark.parametrize("fields", [{}, {"stream_options": {"include_usage": False}}])
def test_a_stream_has_no_usage_unasked(model: GenAIModel, fields: dict[str, Any]) -> None:
    chunks = list(model.stream_chat(SPAIN, **fields))
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_with_usage_says_so_in_each_chunk(model: GenAIModel) -> None:
    *chunks, last = model.stream_chat(SPAIN, **COUNTED)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert counts(last["usage"]) == counts(model.chat(SPAIN)["usage"])


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
    assert texts == ["The capital of Spain is Madrid."] * 2


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


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"temperature": 2, "top_k": 1}], ids=str)
def test_min_tokens_holds_the_end_back_and_no_longer(
    model: GenAIModel, more: dict[str, Any]
) -> None:
    plain = model.chat(SPAIN, **more)
    text, tokens = plain["choices"][0]["message"]["content"], plain["usage"]["completion_tokens"]
    # The token that ends it is not one of those that there must be.
    assert model.chat(SPAIN, min_tokens=tokens - 1, **more)["choices"] == plain["choices"]
    longer = model.chat(SPAIN, min_tokens=tokens, max_tokens=tokens + 4, **more)
    assert longer["usage"]["completion_tokens"] > tokens
    assert longer["choices"][0]["message"]["content"].startswith(text)
    assert longer["choices"][0]["message"]["content"] != text


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


def test_tool_choice_none_hides_the_tools(model: GenAIModel) -> None:
    with_none = model.chat(WEATHER, tools=TOOLS, tool_choice="none")
    assert with_none["usage"]["prompt_tokens"] == model.chat(WEATHER)["usage"]["prompt_tokens"]


def test_guesses_change_no_answer(model: GenAIModel) -> None:
    asked = {"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 30}
    plain = model.chat(SPAIN, **asked)
    text = plain["choices"][1]["message"]["content"]
    for more in (
        {"prediction": {"type": "content", "content": text}},
        {"prediction": {"type": "content", "content": "Rome"}, "prompt_lookup_num_tokens": 2},
        {"prompt_lookup_num_tokens": 16},
    ):
        guessed = model.chat(SPAIN, **asked, **more)
        assert guessed["choices"] == plain["choices"]
        assert counts(guessed["usage"]) == counts(plain["usage"])


def test_the_usage_tells_how_many_guesses_were_right(model: GenAIModel) -> None:
    story = [{"role": "user", "content": "Tell me a long story."}]
    plain = model.chat(story, max_tokens=100)
    text = plain["choices"][0]["message"]["content"]
    predicted = {"prediction": {"type": "content", "content": text}, "max_tokens": 100}
    answer = model.chat(story, **predicted)
    assert answer["choices"] == plain["choices"]
    details = answer["usage"]["completion_tokens_details"]
    assert details.keys() == {"accepted_prediction_tokens", "rejected_prediction_tokens"}
    assert 0 < details["accepted_prediction_tokens"] < answer["usage"]["completion_tokens"]
    *_, last = model.stream_chat(story, **predicted, **COUNTED)
    assert last["usage"]["completion_tokens_details"] == details
    assert "completion_tokens_details" not in plain["usage"]


def test_an_answer_does_not_begin_with_the_vocabulary_s_own_space(model: GenAIModel) -> None:
    begun = [*SPAIN, {"role": "assistant", "content": "The capital of Spain is"}]
    # What goes on with a text, or was asked for, keeps it.
    assert text(model.chat(begun, continue_final_message=True)) == " Madrid."
    assert text(model.chat(SPAIN, regex=" [a-z]{3}"))[0] == " "
    assert model.generate("The capital of Spain is", max_tokens=1) == " Madrid"
    assert text(model.chat(SPAIN, max_tokens=1)) == "The"
    first, second = model.chat(SPAIN, max_tokens=2, logprobs=True)["choices"][0]["logprobs"][
        "content"
    ]
    assert (first["token"], bytes(first["bytes"])) == ("The", b"The")
    assert (second["token"], bytes(second["bytes"])) == (" capital", b" capital")


def text(response: dict[str, Any]) -> str:
    return response["choices"][0]["message"]["content"]
