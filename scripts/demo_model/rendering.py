"""Talks as prompt text, by the chat template that is shipped with the model."""

import json
from pathlib import Path
from typing import Any

from corpus import Example
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").strip()


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return environment


_COMPILED = _environment().from_string(TEMPLATE)


def render(messages: Any, tools: Any = None, *, add_generation_prompt: bool = False) -> str:
    """The text of a talk.

    Args:
        messages: Messages in OpenAI's form.
        tools: Tools in OpenAI's form, or a string that stands for them as it is.
        add_generation_prompt: Whether the text ends with the beginning of an answer.

    Returns:
        The prompt text, roles as special tokens.
    """
    return _COMPILED.render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
    )


def text_of(example: Example) -> str:
    """All text of an example, prompt and answers."""
    if example.messages:
        return render(example.messages, example.tools)
    return example.prompt + example.completion
