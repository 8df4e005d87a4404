"""The exported model as a user meets it: through onnxruntime-genai."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime_genai as og
from rendering import render

ROWS = 32


class Runtime:
    """A model folder, loaded.

    Args:
        folder: What `export` wrote.
    """

    def __init__(self, folder: Path) -> None:
        started = time.perf_counter()
        self.model = og.Model(str(folder))
        self.tokenizer = og.Tokenizer(self.model)
        self.load_seconds = time.perf_counter() - started
        self._stops = {int(token) for token in self.tokenizer.eos_token_ids}
        self._pad = int(self.tokenizer.pad_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        return [int(token) for token in self.tokenizer.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the space in front of its first word."""
        return str(self.tokenizer.decode(np.array(tokens, dtype=np.int32))).lstrip(" ")

    def template(self, messages: Any, tools: Any = None) -> str:
        """The prompt that the runtime's own chat template makes of a talk."""
        extra = {} if tools is None else {"tools": json.dumps(tools, ensure_ascii=False)}
        return str(
            self.tokenizer.apply_chat_template(
                json.dumps(messages, ensure_ascii=False), add_generation_prompt=True, **extra
            )
        )

    def generate(
        self, prompts: Sequence[str], *, tokens: int = 400, **options: Any
    ) -> list[list[int]]:
        """Token ids of the answers, end tokens left out; 32 prompts at a time go together.

        Args:
            prompts: Prompt texts.
            tokens: Length of an answer at most.
            options: Search options of onnxruntime-genai; without any the search is greedy.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        answers: list[list[int]] = [[] for _ in encoded]
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            found = self._generate([encoded[row] for row in rows], tokens, options)
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers

    def _generate(
        self, rows: list[list[int]], tokens: int, options: dict[str, Any]
    ) -> list[list[int]]:
        width = max(map(len, rows))
        params = og.GeneratorParams(self.model)
        params.set_search_options(batch_size=len(rows), max_length=width + tokens, **options)
        generator = og.Generator(self.model, params)
        padded = [row + [self._pad] * (width - len(row)) for row in rows]
        generator.append_tokens(np.array(padded, dtype=np.int32))
        answers: list[list[int]] = [[] for _ in rows]
        running = set(range(len(rows)))
        while running and not generator.is_done():
            generator.generate_next_token()
            chosen = generator.get_next_tokens()
            for row in tuple(running):
                token = int(chosen[row])
                if token in self._stops:
                    running.remove(row)
                else:
                    answers[row].append(token)
        return answers


def chat_prompt(*contents: str, system: str | None = None) -> str:
    """The prompt of a talk: an optional system message, then user and assistant in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for place, content in enumerate(contents):
        messages.append({"role": "assistant" if place % 2 else "user", "content": content})
    return render(messages, add_generation_prompt=True)
