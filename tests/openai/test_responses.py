"""What writers make of completions: whole and as chunks, from what an engine may deliver."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx.core.request import Delta, EncodedPrompt, TokenLogprob
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.openai.reasoning.registry import REASONING_FORMATS
from mlflow_phi3_onnx.openai.responses import ChatWriter, TextWriter
from mlflow_phi3_onnx.openai.tools.formats.registry import FORMATS
from tests.support.tool_cases import WEATHER, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def chat_writer(**fields: Any) -> ChatWriter:
    request = parse_request({"messages": WEATHER, "tools": [tool("f")], **fields}, "llm/v1/chat")
    read = partial(REASONING_FORMATS["think"].reader, "free", FORMATS["hermes"].parser([tool("f")]))
    return ChatWriter(request, [EncodedPrompt(20)], "m", read)


def choices(writer: ChatWriter, *deltas: Delta) -> list[dict[str, Any]]:
    chunks = [chunk for delta in deltas for chunk in writer.add(0, delta)]
    return [choice for chunk in chunks for choice in chunk["choices"]]


def test_each_token_s_logprob_is_streamed_once_whatever_a_delta_comes_to() -> None:
    token = TokenLogprob(5, "x", b"x", -0.5)
    deltas = [
        Delta(f"Yes. {CALL} Well.", 1, None, (token,)),  # text, a call's name, arguments, text
        Delta("<tool", 2, None, (token,)),  # nothing to pass on yet
        Delta("", 2),
        Delta("s", 3, "length", (token, token)),
    ]
    streamed = choices(chat_writer(logprobs=True), *deltas)
    counted = [len(choice["logprobs"]["content"]) for choice in streamed if "logprobs" in choice]
    assert counted == [1, 1, 2]
    assert len(streamed) > 6
    assert "logprobs" in streamed[0]
    whole = Delta(f"Yes. {CALL} Well.<tools", 3, "length", (token,) * 4)
    (choice,) = chat_writer(logprobs=True).respond([whole])["choices"]
    assert len(choice["logprobs"]["content"]) == 4


@pytest.mark.parametrize(
    ("text", "ended", "reason", "called"),
    [
        ("Yes.", "stop", "stop", False),
        ("Yes.", "length", "length", False),
        (CALL, "stop", "tool_calls", True),
        (f"{CALL} And then", "stop", "tool_calls", True),
        (CALL, "length", "length", True),
        (CALL[:40], "length", "length", True),
        (CALL[:20], "length", "length", False),
        (CALL[:40], "stop", "tool_calls", True),
        (CALL[:20], "stop", "stop", False),
    ],
)
def test_why_an_answer_with_tools_ended(
    text: str, ended: Any, reason: str, *, called: bool
) -> None:
    (choice,) = chat_writer().respond([Delta(text, 9, ended)])["choices"]
    assert choice["finish_reason"] == reason
    assert ("tool_calls" in choice["message"]) == called
    streamed = choices(chat_writer(), Delta(text, 9), Delta("", 9, ended))
    assert [piece["finish_reason"] for piece in streamed] == [None] * (len(streamed) - 1) + [reason]
    assert any("tool_calls" in piece["delta"] for piece in streamed) == called


@pytest.mark.parametrize(
    ("n", "cached", "found"),
    [(1, [3, 9], 12), (2, [3, 9, 8, 4], 7), (2, [9, 0, 0, 8], 0), (3, [5, 7, 6, 4, 4, 4], 9)],
)
def test_of_a_prompt_s_cached_tokens_the_least_that_was_found_counts(
    n: int, cached: Sequence[int], found: int
) -> None:
    fields = {"prompt": ["a", "b"], "n": n, "stream_options": {"include_usage": True}}
    request = parse_request(fields, "llm/v1/completions")
    prompts = [EncodedPrompt(20, "a"), EncodedPrompt(30, "b")]
    ends = [Delta("x", 2, "stop", cached_tokens=tokens) for tokens in cached]
    usage = TextWriter(request, prompts, "m", ()).respond(ends)["usage"]
    assert usage.get("prompt_tokens_details", {"cached_tokens": 0}) == {"cached_tokens": found}
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (50, 2 * len(ends))
    writer = TextWriter(request, prompts, "m", ())
    for index in reversed(range(len(ends))):  # whichever ends first
        list(writer.add(index, ends[index]))
    (last,) = writer.end()
    assert last["usage"] == usage


def test_a_token_that_is_not_in_the_text_moves_no_offset() -> None:
    request = parse_request({"prompt": "xyz", "logprobs": 0}, "llm/v1/completions")
    writer = TextWriter(request, [EncodedPrompt(3, "xyz")], "m", {7})
    tokens = [TokenLogprob(5, "a", b"a", -0.5), TokenLogprob(7, "<|x|>", b"<|x|>", -0.5)]
    (choice,) = writer.respond([Delta("aa", 3, "stop", (*tokens, tokens[0]))])["choices"]
    assert choice["logprobs"]["tokens"] == ["a", "<|x|>", "a"]
    assert choice["logprobs"]["text_offset"] == [3, 4, 4]


def test_of_likely_tokens_with_one_text_the_likelier_counts() -> None:
    request = parse_request({"prompt": "x", "logprobs": 2}, "llm/v1/completions")
    writer = TextWriter(request, [EncodedPrompt(1, "x")], "m", ())
    top = (TokenLogprob(4, "a", b"a", -0.1), TokenLogprob(9, "b", b"b", -3.0))
    chosen = TokenLogprob(5, "a", b"a", -5.0, top)
    (choice,) = writer.respond([Delta("a", 1, "length", (chosen,))])["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-5.0]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.1, "b": -3.0}]
