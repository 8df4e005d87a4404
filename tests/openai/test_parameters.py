"""The ends of what a parameter may be: the last value that is taken, and the first that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from mlflow_phi3_onnx import InvalidRequestError
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import parse_request
from tests.support.doors import SPAIN

if TYPE_CHECKING:
    from mlflow_phi3_onnx.core.tasks import Task


class Edge(NamedTuple):
    """Values of one parameter, and what is asked for beside it."""

    name: str
    taken: list[Any]
    refused: list[Any]
    beside: dict[str, Any] = {}  # noqa: RUF012 - of a tuple, whose fields do not change


def after(value: float) -> float:
    return float(np.nextafter(value, np.inf))


def before(value: float) -> float:
    return float(np.nextafter(value, -np.inf))


def tools(count: int) -> list[Any]:
    return [{"type": "function", "function": {"name": f"f{i}"}} for i in range(count)]


def predicted(characters: int) -> dict[str, Any]:
    parts = [{"type": "text", "text": "x" * (characters - 1)}, {"type": "text", "text": "y"}]
    return {"type": "content", "content": parts}


EDGES = [
    Edge("temperature", [0, 2, 2.0], [before(0), after(2)]),
    Edge("top_p", [0, 1, 1.0], [before(0), after(1)]),
    Edge("min_p", [0, 1, 1.0], [before(0), after(1)]),
    Edge("top_k", [-1, 0, 2**31 - 1], [-2, 2**31]),
    Edge("seed", [-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63]),
    Edge("max_tokens", [1, 1.0, 2**31 - 1], [0, 2**31]),
    Edge("max_completion_tokens", [1], [0]),
    Edge("max_length", [1], [0]),
    Edge("min_tokens", [0], [-1]),
    Edge("n", [1, 128], [0, 129]),
    Edge("repetition_penalty", [after(0), 10], [0, after(10)]),
    Edge("presence_penalty", [-2, 2], [before(-2), after(2)]),
    Edge("frequency_penalty", [-2, 2], [before(-2), after(2)]),
    Edge("timeout", [after(0)], [0]),
    Edge("prompt_lookup_num_tokens", [0, 16], [-1, 17]),
    Edge("top_logprobs", [0, 20], [-1, 21], {"logprobs": True}),
    Edge("stop", ["x" * 1024, ["x" * 1024], ["x"] * 16, []], ["x" * 1025, ["x"] * 17, [""]]),
    Edge(
        "logit_bias",
        [{"5": -100, 6: 100}, dict.fromkeys(range(1024), 1), {"0": 1}, {str(2**31 - 1): 1}],
        [
            {"5": before(-100)},
            {"5": after(100)},
            dict.fromkeys(range(1025), 1),
            {"-1": 1},
            {str(2**31): 1},
            {"٣": 1},
        ],
    ),
    Edge("tools", [tools(128), []], [tools(129)]),
    Edge("choice", [["a"] * 1000, ["x" * (1 << 15)]], [["a"] * 1001, ["x" * (1 << 14)] * 3, [""]]),
    Edge("choice", [["x" * ((1 << 15) - 1), "y"]], [["x" * (1 << 15), "y"]]),
    Edge("regex", ["x" * (1 << 13)], ["x" * ((1 << 13) + 1)]),
    Edge("grammar", ["x" * (1 << 15)], ["x" * ((1 << 15) + 1)]),
    Edge("prediction", [predicted(1 << 20)], [predicted((1 << 20) + 1)]),
]


# Of each honoured parameter a value that is not its default.
CHOSEN: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "do_sample": True,
    "seed": 1,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "max_length": 5,
    "min_tokens": 5,
    "stop": "x",
    "stop_token_ids": [5],
    "ignore_eos": True,
    "n": 2,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "logprobs": 1,
    "top_logprobs": 2,
    "echo": True,
    "tools": tools(1),
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"enable_thinking": True},
    "response_format": {"type": "json_object"},
    "regex": "x",
    "grammar": "start: /x/",
    "choice": ["x"],
    "timeout": 5,
    "prompt_lookup_num_tokens": 5,
    "prediction": {"type": "content", "content": "x"},
    "adapter": "one",
    "model": "one",
    "stream": True,
    "stream_options": {"include_usage": True},
}
NEEDS: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": tools(1)},
    "parallel_tool_calls": {"tools": tools(1)},
}
TURNS = [*SPAIN, {"role": "assistant", "content": "It is"}]


def check(task: Task, given: dict[str, Any], edge: Edge) -> None:
    for value in edge.taken:
        assert parse_request({**given, **edge.beside, edge.name: value}, task)
    for value in edge.refused:
        with pytest.raises(InvalidRequestError, match=rf"^{edge.name} must be ") as caught:
            parse_request({**given, **edge.beside, edge.name: value}, task)
        assert caught.value.param == edge.name


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.name)
def test_a_parameter_of_a_chat_reaches_as_far_as_it_says(edge: Edge) -> None:
    check("llm/v1/chat", {"messages": SPAIN}, edge)


@pytest.mark.parametrize(
    "edge",
    [
        Edge("max_tokens", [0, 1], [-1], {"echo": True}),
        Edge("max_completion_tokens", [1], [0], {"echo": True}),
        Edge("logprobs", [0, 20], [-1, 21]),
    ],
    ids=lambda edge: edge.name,
)
def test_a_parameter_of_completions_reaches_as_far_as_it_says(edge: Edge) -> None:
    check("llm/v1/completions", {"prompt": "x"}, edge)


def test_a_chat_has_as_many_messages_as_it_may() -> None:
    messages = SPAIN * 10_000
    assert parse_request({"messages": messages}, "llm/v1/chat")
    with pytest.raises(InvalidRequestError, match="at most 10,000 messages; got 10,001"):
        parse_request({"messages": [*messages, *SPAIN]}, "llm/v1/chat")


def test_token_ids_have_31_bits() -> None:
    for prompt in ([2**31 - 1], [[0, 2**31 - 1]]):
        assert parse_request({"prompt": prompt}, "llm/v1/completions")
    for prompt in ([2**31], [-1], [[0, 2**31]]):
        with pytest.raises(InvalidRequestError, match="a token id, an integer from 0"):
            parse_request({"prompt": prompt}, "llm/v1/completions")


@pytest.mark.parametrize("task", ALL_TASKS)
def test_each_honoured_parameter_changes_what_is_asked_for(task: Task) -> None:
    """One that stands in the table only would be taken, and do nothing."""
    values = {**CHOSEN, "logprobs": True} if task == CHAT else CHOSEN
    field, prompt = ("messages", TURNS) if task == CHAT else ("prompt", "x")
    for name, option in PARAMETERS[task].items():
        if option.status == "honoured":
            plain = {field: prompt, **NEEDS.get(name, {})}
            chosen = parse_request({**plain, name: values[name]}, task, adapters=["one"])
            assert chosen != parse_request(plain, task, adapters=["one"]), name
