"""The loops that users of onnxruntime-genai write by hand: what the package is compared with."""

from __future__ import annotations

import importlib
import json
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.timing import timed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["RawModel"]


class RawModel:
    """A model in onnxruntime-genai, and its plain greedy loops.

    Args:
        folder: The model's folder.
        threads: Threads that compute one operator; None leaves it to onnxruntime-genai.
        ends: Whether answers may end by themselves; if so, they are kept from it here.
    """

    def __init__(self, folder: Path, threads: int | None, *, ends: bool = False) -> None:
        self._og: Any = importlib.import_module("onnxruntime_genai")
        config = self._og.Config(str(folder))
        if threads is not None:
            session = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = self._og.Model(config)
        self._tokenizer = self._og.Tokenizer(self._model)
        self._ends = ends

    def answer(self, prompt: str, tokens: int) -> str:
        """Write so many tokens, with a KV cache of just that size."""
        ids = self._tokenizer.encode(prompt)
        generator = self._generator(1, len(ids), tokens)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return self._tokenizer.decode(self._new(generator, len(ids), tokens))

    def answer_with_defaults(self, prompt: str, tokens: int) -> str:
        """Write so many tokens with no option set: the KV cache is that of the whole context."""
        ids = self._tokenizer.encode(prompt)
        params = self._og.GeneratorParams(self._model)
        if self._ends:
            params.set_search_options(min_length=len(ids) + tokens)
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(ids)
        for _ in range(tokens):
            generator.generate_next_token()
        return self._tokenizer.decode(self._new(generator, len(ids), tokens))

    def batch(self, prompts: Sequence[str], tokens: Sequence[int]) -> list[str]:
        """Answer several prompts in one generator, until the longest answer is written."""
        encoded = [self._tokenizer.encode(prompt) for prompt in prompts]
        width = max(map(len, encoded))
        # No prompt ends with the pad id, by which a row's length is found.
        ids = np.full((len(encoded), width), self._tokenizer.pad_token_id, dtype=np.int32)
        for row, prompt in zip(ids, encoded, strict=True):
            row[: len(prompt)] = prompt
        generator = self._generator(len(encoded), width, max(tokens))
        answers: list[list[int]] = [[] for _ in encoded]
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
            for answer, token in zip(answers, generator.get_next_tokens(), strict=True):
                answer.append(int(token))
        return [
            self._tokenizer.decode(np.array(answer[:count], dtype=np.int32))
            for answer, count in zip(answers, tokens, strict=True)
        ]

    def speeds(self, prompt: str, rows: int, steps: int) -> tuple[float, float]:
        """Return the tokens per second of a prompt, and those of a batch of rows that begin so.

        Args:
            prompt: The prompt of every row.
            rows: How many rows.
            steps: How many tokens of each row are timed; their median counts.
        """
        ids = self._tokenizer.encode(prompt)
        generator = self._generator(rows, len(ids), steps + 1)
        prefill = timed(lambda: generator.append_tokens(np.tile(ids, (rows, 1))))
        generator.generate_next_token()  # computes nothing: the prompt gave its logits
        times = [timed(generator.generate_next_token) for _ in range(steps)]
        return rows * len(ids) / prefill, rows / statistics.median(times)

    def _generator(self, rows: int, width: int, tokens: int) -> Any:
        params = self._og.GeneratorParams(self._model)
        length = width + tokens
        least = length if self._ends else 0
        params.set_search_options(
            batch_size=rows, max_length=length, min_length=least, do_sample=False
        )
        return self._og.Generator(self._model, params)

    def _new(self, generator: Any, prompt: int, tokens: int) -> Any:
        new = generator.get_sequence(0)[prompt:]
        if len(new) != tokens:
            raise ValueError(f"The raw loop wrote {len(new)} tokens, not {tokens}.")
        return new
