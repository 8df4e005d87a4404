"""The tasks that a model may be saved for."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["ALL_TASKS", "CHAT", "COMPLETIONS", "TEXT", "Task"]

Task: TypeAlias = Literal["llm/v1/chat", "llm/v1/completions", "text-generation"]

CHAT: Task = "llm/v1/chat"
COMPLETIONS: Task = "llm/v1/completions"
TEXT: Task = "text-generation"

ALL_TASKS: tuple[Task, ...] = (CHAT, COMPLETIONS, TEXT)
