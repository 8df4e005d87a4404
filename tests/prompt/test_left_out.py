"""What a template leaves out is found in long conversations too, and without reading them often."""

from __future__ import annotations

import pytest

from mlflow_phi3_onnx import InvalidRequestError
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.control_text import Hidden
from mlflow_phi3_onnx.prompt.finder import TextFinder
from mlflow_phi3_onnx.prompt.template.chat_template import ChatTemplate
from mlflow_phi3_onnx.prompt.template.conversation import Conversation

UPPER = "{% for m in messages if m.role != 'tool' %}{{ m.content | upper }}\n{% endfor %}"
PLAIN = "{% for m in messages if m.role != 'tool' %}{{ m.content }}\n{% endfor %}"


def render(template: str, messages: tuple[dict[str, str], ...]) -> str:
    chat = Conversation(ChatPrompt(messages))
    none = TextFinder(())
    return chat.render(
        ChatTemplate(template), Hidden(chat.texts, none, none), add_generation_prompt=False
    )


@pytest.mark.parametrize("template", [UPPER, PLAIN], ids=["edited", "as they are"])
@pytest.mark.parametrize("number", [0, 63, 64, 65, 199])
def test_a_message_that_is_left_out_among_many(template: str, number: int) -> None:
    messages = tuple({"role": "user", "content": f"text {n}"} for n in range(200))
    assert render(template, messages).lower().count("text") == 200
    left_out = {"role": "tool", "content": "what a tool said"}
    with pytest.raises(InvalidRequestError, match=rf"leaves out messages\[{number}\]"):
        render(template, (*messages[:number], left_out, *messages[number + 1 :]))


def test_messages_that_are_shown_in_another_order() -> None:
    reverse = "{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}"
    messages = tuple({"role": "user", "content": f"text {n} end"} for n in range(200))
    assert render(reverse, messages).startswith("text 199 end\ntext 198 end")


@pytest.mark.timeout(60)
def test_long_conversations_that_a_template_edits() -> None:
    """Looking for each content in the whole prompt would take minutes."""
    messages = tuple({"role": "user", "content": f"{n} " + "x" * 300} for n in range(10_000))
    assert render(UPPER, messages).count("X") == 3_000_000
