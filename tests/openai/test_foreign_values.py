"""Values that answer a comparison with no truth value, at every place of a request."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pytest

from mlflow_phi3_onnx import GenAIError
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS
from mlflow_phi3_onnx.openai.parse import parse_request

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "x"},
]
SCHEMA = {"name": "n", "description": "d", "strict": True, "schema": {"type": "object"}}
REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (
        CHAT,
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "model": "m",
            "adapter": "a",
            "stop": ["a"],
            "logit_bias": {"1": 2},
            "stream_options": {"include_usage": True},
            "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
            "chat_template_kwargs": {"a": 1},
            "top_logprobs": 1,
            "logprobs": True,
            "temperature": 1,
            "do_sample": True,
        },
    ),
    (
        CHAT,
        {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    ),
    (CHAT, {"messages": MESSAGES, "choice": ["a", "b"]}),
    (COMPLETIONS, {"prompt": ["a", "b"], "echo": True, "logprobs": 1, "regex": "a"}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
    (COMPLETIONS, {"prompt": [1, 2]}),
]


class Odd:
    """Has no truth value, and is equal to nothing nor unequal."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError

    def __bool__(self) -> bool:
        raise ArithmeticError


FOREIGN = {
    "array": np.array(["user", "tool"]),
    "empty array": np.array([]),
    "NA": pd.NA,
    "NaT": pd.NaT,
    "series": pd.Series([1, 2]),
    "frame": pd.DataFrame({"a": [1, 2]}),
    "odd": Odd(),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a request."""
    if at:
        yield at
    if isinstance(value, list):
        value = dict(enumerate(cast("list[Any]", value)))
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield from places(item, (*at, key))


def put(request: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = deepcopy(request)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return changed


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_values_are_refused_or_taken_as_they_are(kind: str) -> None:
    for task, request in REQUESTS:
        parse_request(request, task, adapters=("a",), own_name="m")
        for at in places(request):
            changed = put(request, at, FOREIGN[kind])
            prompt = {key: changed[key] for key in ("messages", "prompt") if key in changed}
            beside = {key: value for key, value in changed.items() if key not in prompt}
            for fields, params in ((changed, None), (prompt, beside)):
                try:
                    parse_request(fields, task, params=params, adapters=("a",), own_name="m")
                except GenAIError as error:
                    assert str(at[0]) in error.message  # noqa: PT017 - many are taken


# An array is taken for a list, and a content may be an empty one.
@pytest.mark.parametrize("kind", sorted(FOREIGN.keys() - {"empty array"}))
@pytest.mark.parametrize("key", ["role", "content"])
def test_a_foreign_value_in_a_message_is_refused_by_its_field(key: str, kind: str) -> None:
    with pytest.raises(GenAIError, match=rf"^messages\[0\]\.{key}(\[0\])? must be ") as caught:
        parse_request(put({"messages": MESSAGES}, ("messages", 0, key), FOREIGN[kind]), CHAT)
    assert (caught.value.param or "").removesuffix("[0]") == f"messages[0].{key}"
