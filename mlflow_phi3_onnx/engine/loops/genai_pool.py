"""Generators that are kept: making one allocates and zeroes its KV cache.

A generator of one sequence also keeps what it computed, so that a prompt that begins alike is
computed only from where it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.engine.loops.prefill import (
    MIN_COMPUTED,
    MIN_PREFIX,
    ChunkSize,
    common_prefix,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.runtime.genai import NativeGenerator, NativeModel

__all__ = ["GeneratorPool"]

MAX_KEPT = 4
"""The most generators that are kept."""

_NOTHING = np.zeros(0, dtype=np.int32)


@dataclass
class _Kept:
    """A generator, and the tokens that are computed in it, where it is for one sequence."""

    generator: NativeGenerator
    tokens: NDArray[np.int32]

    grows: bool

    @property
    def kv_tokens(self) -> int:
        if self.grows:
            return len(self.tokens)
        return self.generator.rows * self.generator.max_length

    def fits(self, sequences: int, needed: int) -> bool:
        return self.generator.rows == sequences and self.generator.max_length >= needed


class GeneratorPool:
    """Makes generators for one model, and takes them back.

    What is kept counts against the KV memory, and gives way to what is asked for, the one that was
    used longest ago first.

    Args:
        model: The loaded model.
        context_length: Tokens of prompt and completion together.
        eos: An end-of-sequence id, for sequences that are finished.
        goes_back: Whether a cache can be taken back to an earlier state, and prompts be computed in
            chunks. No generators are kept where it cannot.
        reuse_prefixes: Whether what was computed is found again.
        first_range: After how many tokens all positions have other factors (LongRoPE), so that
            everything is computed again; 0 where that never is.
        grows: Whether each step makes a longer cache. Then none is allocated beforehand, and only
            what was computed is worth keeping.

    Attributes:
        chunks: What keeps the speed of prompts.
        reuses_prefixes: Whether what was computed is found again.
        pad: The id that pads a ragged batch.
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        context_length: int,
        eos: int,
        goes_back: bool,
        reuse_prefixes: bool,
        first_range: int,
        grows: bool,
    ) -> None:
        self._model = model
        self.pad = model.pad
        self.first_range = first_range
        self.grows = grows
        self.context_length = context_length
        self.eos = eos
        self.goes_back = goes_back
        self.reuses_prefixes = goes_back and reuse_prefixes
        self.chunks = ChunkSize()
        self._kept: list[_Kept] = []

    def take(
        self,
        sequences: int,
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
            sequences: How many it is for.
            needed: How many tokens each may come to hold.
            budget: How many tokens of KV memory there are for it and for all that are kept.
            roomy: How many tokens each is to have room for where a generator is made.
            least: How many are enough where the beginning of the prompt is found.
            adapter: The adapter that it uses, None for none. What was computed with one is never
                found again for another, nor for none.
            prompt: The prompt of one sequence, where a beginning of it may be found again.

        Returns:
            The generator, and how many tokens of the prompt are computed in it.
        """
        # Whatever else was looked at is forgotten by now, and free once it is no longer kept.
        kept, prefix = self._find(sequences, needed, budget, least, adapter, prompt)
        if kept is not None:
            self._kept.remove(kept)
        size = max(needed, roomy)
        if kept is None or self.grows:
            while self._kept and sum(k.kv_tokens for k in self._kept) > budget - sequences * size:
                del self._kept[0]
        if kept is not None:
            kept.generator.rewind(prefix)
            return kept.generator, prefix
        size = self.context_length if self.grows else size
        return self._model.generator(sequences, size, adapter), 0

    def give(self, generator: NativeGenerator, tokens: NDArray[np.int32] = _NOTHING) -> None:
        """Take a generator back.

        Args:
            generator: One that nobody uses any more.
            tokens: The tokens whose keys and values it holds, where it is for one sequence.
        """
        tokens = tokens if self.reuses_prefixes else _NOTHING
        if self.goes_back and (len(tokens) or not self.grows):
            self._kept.append(_Kept(generator, tokens, self.grows))
            del self._kept[:-MAX_KEPT]

    def _find(
        self,
        sequences: int,
        needed: int,
        budget: int,
        least: int,
        adapter: str | None,
        prompt: NDArray[np.int32],
    ) -> tuple[_Kept | None, int]:
        """Choose one that is kept, and how much of the prompt it holds; arguments as of take."""
        usable = [
            kept
            for kept in self._kept
            if kept.generator.adapter == adapter and kept.kv_tokens <= budget
        ]
        wanted = prompt[:-MIN_COMPUTED]  # the rest is always computed
        large = [kept for kept in usable if kept.generator.max_length >= least]
        found = [(common_prefix(kept.tokens, wanted), kept) for kept in large]
        prefix, kept = max(found, key=lambda pair: pair[0], default=(0, None))
        if prefix >= MIN_PREFIX:
            return kept, prefix
        if self.grows:
            return None, 0
        # Rather one that holds little, for that is lost.
        fitting = [kept for kept in usable if kept.fits(sequences, needed)]
        return min(fitting, key=lambda kept: len(kept.tokens), default=None), 0
