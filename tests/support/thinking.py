"""Folders of the demo model that think aloud.

The demo model writes a call between two tokens where it sees a tool. Here these tokens are marks of
thoughts, and the template always shows a tool: so it thinks of a call, and ends.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from tests.support.edits import edit_json
from tests.support.tool_cases import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

THOUGHT = '[{"name": "get_weather", "arguments": {"city": "Paris"}}]'

MARKED = (
    "{%- set shown = "
    + json.dumps(TOOLS[:1])
    + " -%}"
    + """
{{- '<|system|>\\n<|tool|>' + (shown | tojson) + '<|/tool|><|end|>\\n' -}}
{%- for m in messages -%}
{{- '<|' + m.role + '|>\\n' -}}
{%- if m.reasoning_content and loop.last -%}
{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- m.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- if opened -%}{{- '<think>\\n' -}}{%- endif -%}
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}"""
)
"""A template with the constructs of Qwen 3's and of DeepSeek's distilled models'."""

CHANNELS = """
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' -}}
{%- for t in tools or [] -%}
{{- '<|start|>developer<|message|>type ' + t.function.name + '<|end|>' -}}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' and m.tool_calls -%}
{%- if m.content and m.thinking -%}{{- raise_exception('Not both.') -}}{%- endif -%}
{%- if m.content or m.thinking -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' -}}
{%- endif -%}
{{- '<|start|>assistant to=functions.' + m.tool_calls[0].function.name -}}
{{- '<|channel|>commentary json<|message|>' -}}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' -}}
{%- else -%}
{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""
"""A template with the constructs of gpt-oss's."""


def thinker(demo: Path, folder: Path, *, begin: str = "<think>", end: str = "</think>") -> Path:
    """Make a model that thinks between two marks, which are control tokens."""
    renamed = {"<|tool_call|>": begin, "<|/tool_call|>": end}
    return _changed(demo, folder, renamed, _marked(begin, end))


def plain_thinker(demo: Path, folder: Path) -> Path:
    """Make a model whose marks are plain text, as Phi-4-mini-reasoning's."""
    return _changed(demo, folder, {}, MARKED)


def channels(demo: Path, folder: Path) -> Path:
    """Make a model whose completions are messages on channels."""
    marks = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|call|>", "<|return|>")
    renamed = {f"<|placeholder{i + 1}|>": mark for i, mark in enumerate(marks)}
    _changed(demo, folder, renamed, CHANNELS)
    ids = [2552, 2553]  # of <|call|> and <|return|>
    edit_json(folder / "genai_config.json", lambda c: c["model"].update(eos_token_id=ids))
    return folder


def _marked(begin: str, end: str) -> str:
    return MARKED.replace("<think>", begin).replace("</think>", end)


def _changed(demo: Path, folder: Path, renamed: dict[str, str], template: str) -> Path:
    shutil.copytree(demo, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in renamed.items():
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
