"""Models that think aloud, through every door: what they think is no part of their answers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.flavor.inspect import inspect_model
from tests.support.doors import COUNTED, ONE_LOOP, gathered
from tests.support.thinking import THOUGHT, channels, plain_thinker, thinker
from tests.support.tool_cases import TOOLS, WEATHER, check_calls, closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

DOORS = ["native", "native stream", "async", "async stream", "pyfunc", "pyfunc stream"]
ONE: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": closed(n={"enum": [1]})},
}
SUNNY: dict[str, Any] = {"choice": ["Sunny."]}


@pytest.fixture(scope="module")
def thinking(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinker(demo, tmp_path_factory.mktemp("thinking") / "model")


@pytest.fixture(scope="module")
def thinking_model(thinking: Path, loop: str) -> Iterator[GenAIModel]:
    with GenAIModel(thinking, model_config={"loop": loop}) as model:
        yield model


@pytest.fixture(scope="module")
def pyfunc(thinking: Path, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("saved") / "chat"
    mlflow_phi3_onnx.save_model(thinking, folder, task="llm/v1/chat")
    return mlflow.pyfunc.load_model(str(folder), model_config={"loop": loop})


Told = tuple[str | None, str, str, int]
"""A thought, the content, why it ended, and how many tokens were reasoning."""


def usage_of(answer: dict[str, Any]) -> int:
    return answer["usage"].get("completion_tokens_details", {}).get("reasoning_tokens", 0)


def whole(answer: dict[str, Any]) -> Told:
    (choice,) = answer["choices"]
    message = choice["message"]
    thought = message.get("reasoning_content")
    return thought, message["content"], choice["finish_reason"], usage_of(answer)


def pieces(chunks: Iterable[dict[str, Any]]) -> Told:
    *seen, last = chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in seen]
    told = [name for delta in deltas for name in delta if delta[name]]
    order = [name for name in told if name != "role"]
    assert order == sorted(order, reverse=True)  # reasoning_content, then content
    thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
    content = "".join(delta.get("content", "") for delta in deltas)
    return thought or None, content, seen[-1]["choices"][0]["finish_reason"], usage_of(last)


@pytest.fixture(scope="module")
def doors(thinking_model: GenAIModel, pyfunc: Any) -> dict[str, Callable[[dict[str, Any]], Told]]:
    model = thinking_model
    return {
        "native": lambda fields: whole(model.chat(**fields)),
        "native stream": lambda fields: pieces(model.stream_chat(**COUNTED | fields)),
        "async": lambda fields: whole(asyncio.run(model.achat(**fields))),
        "async stream": lambda fields: pieces(gathered(model.astream_chat(**COUNTED | fields))),
        "pyfunc": lambda fields: whole(pyfunc.predict(fields)[0]),
        "pyfunc stream": lambda fields: pieces(pyfunc.predict_stream(COUNTED | fields)),
    }


OPENED = {"chat_template_kwargs": {"opened": True}}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
# A thought has 18 tokens with its marks, 17 where the prompt has the first.
CASES: dict[str, tuple[dict[str, Any], Told]] = {
    "a thought": ({}, (THOUGHT, "", "stop", 18)),
    "and an answer": (SUNNY, (THOUGHT, "Sunny.", "stop", 18)),
    "and a schema": ({"response_format": ONE}, (THOUGHT, '{"n": 1}', "stop", 18)),
    "and a regex": ({"regex": "[A]{3}"}, (THOUGHT, "AAA", "stop", 18)),
    "and a grammar": ({"grammar": 'start: "Yes."'}, (THOUGHT, "Yes.", "stop", 18)),
    "that is cut": ({"max_tokens": 3}, ('[{"name', "", "length", 3)),
    "that is cut at its mark": ({"max_tokens": 1}, (None, "", "length", 1)),
    "that is cut before its end": ({"max_tokens": 17}, (THOUGHT, "", "length", 17)),
    "that is cut at its end": ({"max_tokens": 18}, (THOUGHT, "", "length", 18)),
    "that is stopped": ({"stop": ["weather"]}, ('[{"name": "get_', "", "stop", 7)),
    "from the prompt on": ({**OPENED}, (THOUGHT, "", "stop", 17)),
    "from the prompt on, held": ({**OPENED, **SUNNY}, (THOUGHT, "Sunny.", "stop", 17)),
    "none": ({**OFF, **SUNNY}, (None, "Sunny.", "stop", 0)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", CASES)
def test_thoughts_are_told_from_answers(
    doors: dict[str, Callable[[dict[str, Any]], Told]], door: str, name: str
) -> None:
    fields, told = CASES[name]
    thought, content, *rest = doors[door]({"messages": WEATHER, "max_tokens": 60, **fields})
    if content.startswith("{"):
        content = json.dumps(json.loads(content))
    assert (thought, content, *rest) == told


def test_reasoning_of_several_completions_is_counted_together(thinking_model: GenAIModel) -> None:
    answer = thinking_model.chat(WEATHER, n=2, max_tokens=40)
    assert usage_of(answer) == 36
    drafted = thinking_model.chat(WEATHER, max_tokens=40, prompt_lookup_num_tokens=4)
    details = drafted["usage"]["completion_tokens_details"]
    assert details.pop("reasoning_tokens") == 18
    assert set(details) == {"accepted_prediction_tokens", "rejected_prediction_tokens"}


def test_every_token_s_logprob_is_told_whatever_it_belongs_to(thinking_model: GenAIModel) -> None:
    fields: dict[str, Any] = {"logprobs": True, "max_tokens": 60, **SUNNY}
    answer = thinking_model.chat(WEATHER, **fields)
    tokens = [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]
    assert (tokens[0], tokens[17]) == ("<think>", "</think>")
    assert "".join(tokens[18:]).strip() == "Sunny."
    chunks = thinking_model.stream_chat(WEATHER, **fields)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    streamed = [entry for c in choices for entry in c.get("logprobs", {}).get("content", [])]
    assert [entry["token"] for entry in streamed] == tokens


@ONE_LOOP
def test_a_setting_says_how_thoughts_are_marked(thinking: Path, loop: str) -> None:
    for setting, told in (("none", (None, "", 0)), ("think", (THOUGHT, "", 18))):
        with GenAIModel(thinking, model_config={"reasoning_format": setting}) as model:
            thought, content, _, count = whole(model.chat(WEATHER, max_tokens=40))
            if setting == "none":
                assert content.replace(" ", "") == f"<think>{THOUGHT}</think>".replace(" ", "")
                content = ""
            assert (thought, content, count) == told
    with pytest.raises(InvalidRequestError, match="must be one of auto, none, harmony,") as caught:
        GenAIModel(thinking, model_config={"reasoning_format": loop})
    assert caught.value.param == "reasoning_format"


@ONE_LOOP
def test_other_marks_are_found_too(demo: Path, tmp_path: Path, loop: str) -> None:
    folder = thinker(demo, tmp_path / "m", begin="[THINK]", end="[/THINK]")
    with GenAIModel(folder, model_config={"loop": loop}) as model:
        told = (THOUGHT, "Sunny.", "stop", 18)
        assert whole(model.chat(WEATHER, max_tokens=60, **SUNNY)) == told
        assert inspect_model(str(folder))["reasoning_format"] == "mistral_think"


@ONE_LOOP
def test_marks_may_be_plain_text(demo: Path, tmp_path: Path, loop: str) -> None:
    folder = plain_thinker(demo, tmp_path / "model")
    with GenAIModel(folder, model_config={"loop": loop}) as model:
        answer = model.chat(WEATHER, max_tokens=40, min_tokens=8, **OPENED)
        thought, content, _, count = whole(answer)
        assert (bool(thought), content) == (True, "")
        assert count == answer["usage"]["completion_tokens"] >= 8
        held = whole(model.chat(WEATHER, max_tokens=40, **OPENED, **SUNNY))
        assert held[1:] in [("Sunny.", "stop", held[3]), ("", "length", 40)]
        assert whole(model.chat(WEATHER, max_tokens=40, **OFF, **SUNNY))[:2] == (None, "Sunny.")
        chat = [*WEATHER, {"role": "assistant", "content": "<think>Hm.</think> It is"}]
        answer = whole(model.chat(chat, max_tokens=5, continue_final_message=True))
        assert (answer[0], answer[3]) == (None, 0)
        chat[-1]["content"] = "<think>Hm"
        fields = {"continue_final_message": True, "max_tokens": 5, "min_tokens": 5}
        answer = whole(model.chat(chat, **fields))
        assert (answer[1], answer[3]) == ("", 5)


@pytest.fixture(scope="module")
def channel_model(
    demo: Path, loop: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GenAIModel]:
    folder = channels(demo, tmp_path_factory.mktemp("channels") / "model")
    with GenAIModel(folder, model_config={"loop": loop}) as model:
        yield model


def test_messages_on_channels_hold_to_forms(channel_model: GenAIModel) -> None:
    rows = [
        {"messages": WEATHER, "max_tokens": 400, "temperature": 1, "seed": seed}
        for seed in range(8)
    ]
    answers = channel_model.run("llm/v1/chat", [{**row, "response_format": ONE} for row in rows])
    ended = [whole(answer) for answer in answers if whole(answer)[2] == "stop"]
    assert len(ended) > 4
    assert {json.dumps(json.loads(content)) for _, content, *_ in ended} == {'{"n": 1}'}
    assert all(bool(thought) <= bool(count) for thought, _, _, count in ended)
    assert any(thought for thought, *_ in ended)

    called = [{**row, "tools": TOOLS[:2], "tool_choice": "required"} for row in rows]
    choices = [answer["choices"][0] for answer in channel_model.run("llm/v1/chat", called)]
    whole_calls = [check_calls(c) for c in choices if c["finish_reason"] != "length"]
    assert len(whole_calls) > 4
    assert all(len(names) == 1 for names in whole_calls)

    both = [{**row, "tools": TOOLS[:2], "response_format": ONE} for row in rows]
    for answer in channel_model.run("llm/v1/chat", both):
        (choice,) = answer["choices"]
        if choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"]) == {"n": 1}
        elif choice["finish_reason"] == "tool_calls":
            assert {c["function"]["name"] for c in choice["message"]["tool_calls"]} <= {
                "get_weather",
                "add_numbers",
            }


@ONE_LOOP
def test_an_effort_is_told_to_a_template_that_reads_it(
    channel_model: GenAIModel, thinking_model: GenAIModel
) -> None:
    fields: dict[str, Any] = {"max_tokens": 2}
    usual = channel_model.chat(WEATHER, **fields)["usage"]["prompt_tokens"]
    told = channel_model.chat(WEATHER, **fields, reasoning_effort="low")["usage"]["prompt_tokens"]
    kwargs = {"reasoning_effort": "low"}
    same = channel_model.chat(WEATHER, **fields, chat_template_kwargs=kwargs)
    assert told == same["usage"]["prompt_tokens"] != usual
    with pytest.raises(InvalidRequestError, match="reasoning_effort stands twice") as caught:
        channel_model.chat(WEATHER, reasoning_effort="low", chat_template_kwargs=kwargs)
    assert caught.value.param == "reasoning_effort"
    with pytest.raises(UnsupportedParameterError, match="It reads: enable_thinking, op") as refused:
        thinking_model.chat(WEATHER, reasoning_effort="low")
    assert refused.value.param == "reasoning_effort"
    assert "chat_template_kwargs" in refused.value.message


@ONE_LOOP
def test_a_thought_goes_back_as_the_template_wants_it(
    channel_model: GenAIModel, thinking_model: GenAIModel
) -> None:
    answer = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Hm."}
    render = thinking_model.apply_chat_template
    rendered = render([*WEATHER, answer], add_generation_prompt=False)
    assert "<think>\nHm.\n</think>\n\nSunny.<|end|>" in rendered

    function = {"name": "f", "arguments": '{"a": 1}'}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "1"}
    head = "<|start|>assistant<|channel|>analysis<|message|>"
    for content, thought, said in (
        ("", "Hm.", "Hm."),
        ("I look.", None, "I look."),
        ("I look.", "Hm.", "Hm.\n\nI look."),
    ):
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        if thought:
            message["reasoning_content"] = thought
        text = channel_model.apply_chat_template([*WEATHER, message, result])
        assert f"{head}{said}<|end|>" in text
        assert '<|channel|>commentary json<|message|>{"a": 1}<|call|>' in text
