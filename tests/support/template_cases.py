"""Conversations, and chat templates of this project's own with the constructs that models' have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).parents[1] / "fixtures"

FAMILIES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted((_HERE / "templates").glob("*.jinja"))
}
"""Templates of the kinds that Phi-3, Phi-4-mini, Llama, Qwen, Gemma, Mistral and others have."""

CONSTRUCTS = [
    tuple(block.removesuffix("\n").split("\n=>\n"))
    for block in (_HERE / "constructs.txt").read_text(encoding="utf-8").split("----\n")
]
"""Small templates, and what transformers makes of them with the longest of the conversations."""


def tool(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, **more}
    description = f"Does {name}.\nReally – «{name}»."
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    tool("weather", {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}, required=["city"]),
    tool(
        "book",
        {
            "days": {"type": "array", "items": {"type": "integer"}},
            "who": {"type": "object", "properties": {"name": {"type": ["string", "null"]}}},
        },
    ),
]


def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call{number:05}", "type": "function", "function": function}


USER = {"role": "user", "content": "  What is the weather in Málaga?\n"}
AGAIN = {"role": "user", "content": "And in 東京 😀?"}
SYSTEM = {"role": "system", "content": "You are kind. /no_think "}
ANSWER = {"role": "assistant", "content": "\nSunny. "}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSunny."}
REASONED = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Hm."}
CALLS = {"role": "assistant", "content": "", "tool_calls": [call(1, "weather", city="Málaga")]}
MORE_CALLS = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [
        call(2, "weather", city='"Oslo"', unit="C"),
        call(3, "book", days=[1, 2], who={}),
    ],
}


def result(number: int, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05}", "content": content}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, AGAIN],
    "system and turns": [SYSTEM, USER, ANSWER, AGAIN, ANSWER],
    "not in turn": [USER, AGAIN],
    "thoughts": [USER, THOUGHT, AGAIN, THOUGHT],
    "reasoning": [USER, REASONED, AGAIN, REASONED],
    "other reasoning": [USER, {"role": "assistant", "content": "x", "reasoning": "Hm."}],
    "a call": [SYSTEM, USER, CALLS, result(1, '{"temperature": 21}')],
    "calls": [USER, CALLS, result(1, "21"), MORE_CALLS, result(2, "-3"), result(3, "[1]"), AGAIN],
    "names": [{**USER, "name": "Ana"}, ANSWER, {**AGAIN, "name": "Bo"}],
}
