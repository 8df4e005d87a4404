"""Generators that are kept: making one allocates and zeroes its KV cache.

A generator of one row also keeps what it computed, so that a prompt that begins alike is computed
only from where it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.engine.loops.prefill import MIN_COMPUTED
from mlflow_phi3_onnx.engine.loops.prefix import MIN_PREFIX, common_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.runtime.genai import NativeGenerator, NativeModel

__all__ = ["GeneratorPool"]

MAX_KEPT = 4
"""The most generators that are kept."""

_NOTHING = np.zeros(0, dtype=np.int32)


@dataclass
class _Kept:
    """A generator, and the tokens of its row that are computed, where it has one row."""

    generator: NativeGenerator
    tokens: NDArray[np.int32]

    @property
    def kv_tokens(self) -> int:
        return self.generator.rows * self.generator.max_length


class GeneratorPool:
    """Makes generators for one model, and takes them back.

    What is kept counts against the KV memory, and gives way to what is asked for, the one that was
    used longest ago first.

    Args:
        model: The loaded model.
        keeps: Whether generators are kept at all; some models cannot go back in their cache.
        reuses_prefixes: Whether what was computed is found again.
    """

    def __init__(self, model: NativeModel, *, keeps: bool, reuses_prefixes: bool) -> None:
        self._model = model
        self._keeps = keeps
        self.reuses_prefixes = keeps and reuses_prefixes
        self._kept: list[_Kept] = []

    def take(
        self,
        rows: int,
        needed: int,
        budget: int,
        *,
        roomy: int = 0,
        least: int = 0,
        adapter: str | None = None,
        prompt: NDArray[np.int32] = _NOTHING,
    ) -> tuple[NativeGenerator, int]:
        """Provide a generator with nothing in it, or with the beginning of a prompt.

        Args:
            rows: How many sequences it is for.
            needed: How many tokens each may come to hold.
            budget: How many tokens of KV memory there are for it and for all that are kept.
            roomy: How many tokens each is to have room for where a generator is made.
            least: How many are enough where the beginning of the prompt is found.
            adapter: The adapter that it uses, None for none. What was computed with one is never
                found again for another, nor for none.
            prompt: The prompt, where there is one row and a beginning may be found again.

        Returns:
            The generator, and how many tokens of the prompt are computed in it.
        """
        usable = [kept for kept in self._kept if kept.generator.adapter == adapter]
        kept, prefix = _longest_prefix(usable, prompt, least)
        if kept is None:
            kept = _large_enough(usable, rows, needed)
        if kept is not None:
            self._kept.remove(kept)
            kept.generator.rewind(prefix)
            return kept.generator, prefix
        size = max(needed, roomy)
        self.shrink(budget - rows * size)
        return self._model.generator(rows, size, adapter), 0

    def give(self, generator: NativeGenerator, tokens: NDArray[np.int32] = _NOTHING) -> None:
        """Take a generator back.

        Args:
            generator: One that nobody uses any more.
            tokens: The tokens whose keys and values it holds, where it has one row.
        """
        if self._keeps:
            self._kept.append(_Kept(generator, tokens if self.reuses_prefixes else _NOTHING))
            del self._kept[:-MAX_KEPT]

    def shrink(self, kv_tokens: int) -> None:
        """Forget generators until the rest takes no more than so many tokens of KV memory."""
        while self._kept and sum(kept.kv_tokens for kept in self._kept) > kv_tokens:
            del self._kept[0]


def _longest_prefix(
    usable: Sequence[_Kept], prompt: NDArray[np.int32], least: int
) -> tuple[_Kept | None, int]:
    """Find the generator that holds the most of a prompt, less what is always computed."""
    best, longest = None, MIN_PREFIX - 1
    for kept in usable:
        prefix = common_prefix(kept.tokens, prompt[:-MIN_COMPUTED])
        if prefix > longest and kept.generator.max_length >= least:
            best, longest = kept, prefix
    return best, 0 if best is None else longest


def _large_enough(usable: Sequence[_Kept], rows: int, needed: int) -> _Kept | None:
    """Find a generator for so many rows; rather one that holds little, for that is lost."""
    found = [
        kept
        for kept in usable
        if kept.generator.rows == rows and kept.generator.max_length >= needed
    ]
    return min(found, key=lambda kept: len(kept.tokens), default=None)
