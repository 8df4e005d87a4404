"""Turns that go on with a message of the assistant's, through every door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.doors import CANARY, DOORS, ONE_LOOP, SPAIN, Door, chat_doors, saved
from tests.support.folders import byte_level, write
from tests.support.tool_cases import TOOLS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def doors(
    model: GenAIModel, demo: Path, loop: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Door]:
    folder = tmp_path_factory.mktemp("saved") / "chat"
    return chat_doors(model, saved(demo, folder, "llm/v1/chat", loop))


def begun(content: str) -> list[dict[str, Any]]:
    return [*SPAIN, {"role": "assistant", "content": content}]


@pytest.mark.parametrize("door", DOORS)
def test_a_completion_goes_on_with_the_last_message(doors: dict[str, Door], door: str) -> None:
    fields: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    answer = doors[door]({"messages": begun("The capital of Spain is"), **fields})
    assert (answer.text, answer.finish_reason) == (" Madrid.", "stop")
    assert answer.usage["completion_tokens"] == 3
    new = doors[door]({"messages": begun("The capital of Spain is"), "max_tokens": 1})
    assert new.usage["prompt_tokens"] > answer.usage["prompt_tokens"]


@pytest.mark.parametrize("door", DOORS)
def test_a_turn_may_be_left_unopened(doors: dict[str, Door], door: str) -> None:
    usual = doors[door]({"messages": SPAIN, "max_tokens": 1}).usage["prompt_tokens"]
    fields: dict[str, Any] = {"messages": SPAIN, "max_tokens": 1, "add_generation_prompt": False}
    assert doors[door](fields).usage["prompt_tokens"] == usual - 1


@pytest.mark.parametrize(
    ("messages", "more"),
    [
        (SPAIN, {}),
        (begun("  "), {}),
        ([*SPAIN, {"role": "system", "content": CANARY}], {}),
        (
            [
                *SPAIN,
                {
                    "role": "assistant",
                    "content": CANARY,
                    "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                },
            ],
            {},
        ),
        (begun(CANARY), {"tools": TOOLS, "tool_choice": "required"}),
        (begun(CANARY), {"tools": TOOLS, "regex": "a"}),
    ],
    ids=str,
)
@ONE_LOOP
def test_what_cannot_be_continued_is_refused(
    model: GenAIModel, messages: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match="continue_final_message goes on") as caught:
        model.chat(messages, continue_final_message=True, **more)
    assert caught.value.param == "continue_final_message"
    assert CANARY not in caught.value.message


@pytest.mark.parametrize(
    "content", ["stop", "|>", "  a b ", "a\n", "<|stop|>", "\ue000break\ue000"]
)
@pytest.mark.parametrize("trims", ["", " | trim"])
def test_a_prompt_ends_with_the_content_as_it_was_given(
    tmp_path: Path, content: str, trims: str
) -> None:
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content" + trims + " }}<|stop|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    tokenizer = PromptTokenizer(write(tmp_path / "model", byte_level(), template))
    messages = ({"role": "user", "content": "x"}, {"role": "assistant", "content": content})
    chat = ChatPrompt(messages, opened=False, continued=True)
    ids = tokenizer.encode_chat(chat, add_generation_prompt=False).tolist()
    text, _ = tokenizer.decode(ids)
    given = content.lstrip() if trims else content
    assert text == f"<|start|>user\nx<|stop|>\n<|start|>assistant\n{given}"
    stop = tokenizer.control_id("<|stop|>")
    assert ids.count(stop) == 1


def test_a_template_that_writes_no_last_message_is_refused(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}{% if not loop.last %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    tokenizer = PromptTokenizer(write(tmp_path / "model", byte_level(), template))
    messages = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})
    with pytest.raises(UnsupportedParameterError) as caught:
        tokenizer.render_chat(ChatPrompt(messages, opened=False, continued=True))
    assert caught.value.param == "continue_final_message"
