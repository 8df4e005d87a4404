"""Rows inside onnxruntime-genai's generators: several in one, or one alone.

A generator's KV cache is allocated, and zeroed, as a whole. Rows that may get long begin with a
small one; when that is full, those that are not over move to a larger one, which computes their
tokens again as a prompt.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.errors import GenAIError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.engine.loops.genai_pool import GeneratorPool
    from mlflow_phi3_onnx.engine.loops.prefill import ChunkSize
    from mlflow_phi3_onnx.engine.sequence.state import SequenceState
    from mlflow_phi3_onnx.runtime.genai import NativeGenerator

__all__ = ["Group", "Single", "most_kv_tokens"]

GROWTH = 512
"""Tokens of KV cache that a generator begins with beyond its prompts, and grows by, at least."""

ENOUGH = 128
"""Tokens of room that are enough for an answer to begin in, where its prompt is found again."""


def most_kv_tokens(rows: Sequence[SequenceState]) -> int:
    """Count the tokens of KV cache that rows take at most together: the widest's, for each."""
    return len(rows) * (max(len(r.prompt) for r in rows) + max(r.max_tokens for r in rows))


def _first_room(rows: Sequence[SequenceState]) -> int:
    longest = max(row.remaining for row in rows)
    return min(longest, max(GROWTH, *(len(row.tokens) for row in rows)))


class _Holder:
    """Holds a generator, or none."""

    _generator: NativeGenerator | None = None

    def _take_generator(self) -> NativeGenerator:
        """Take the generator out, so that one that fails is not used again."""
        generator, self._generator = self._generator, None
        assert generator is not None, "there is no generator, or it has failed"
        return generator


class Group(_Holder):
    """Several rows in one generator.

    They start together, and a row that is over is computed on until the last one is, or until
    those that are not move to a smaller generator.

    Args:
        pool: Where generators come from.
        rows: The rows, two or more, of one adapter.
        eos: An id that ends an answer, for the rows that are over.
        chunks: What keeps the speed of prompts.
        budget: How many tokens of KV memory there are for the rows and for what the pool keeps.
    """

    def __init__(
        self,
        pool: GeneratorPool,
        rows: Sequence[SequenceState],
        eos: int,
        chunks: ChunkSize,
        budget: int,
    ) -> None:
        self.rows = rows
        self.kv_tokens = most_kv_tokens(rows)
        self._pool = pool
        self._eos = eos
        self._chunks = chunks
        self._budget = budget
        self._inside: Sequence[SequenceState] = ()
        self._room = 0
        self._wasted = 0

    @property
    def live(self) -> list[SequenceState]:
        """The rows that are not over."""
        return [row for row in self.rows if not row.finished]

    @property
    def wasteful(self) -> bool:
        """Whether rows that are over have cost as much as moving the others would have.

        So at worst twice as much is computed as by a loop that knew when each row ends.
        """
        live = self.live
        return bool(live) and self._wasted >= sum(len(row.prompt) + len(row.tokens) for row in live)

    def step(self, *, alone: bool) -> None:
        """Compute one more token for every row that is not over."""
        del alone  # the prompts of several rows cannot be computed in pieces
        if self._room == 0:
            self._open()
        generator = self._take_generator()
        self._room -= 1
        live = [row for row in self._inside if not row.finished]
        if all(row.is_greedy for row in live):
            tokens = generator.advance()
        else:
            logits = generator.logits()
            tokens = [self._choose(row, logits[i]) for i, row in enumerate(self._inside)]
            generator.force(tokens)
        for row, token in zip(self._inside, tokens, strict=True):
            if not row.finished:
                row.take(token)
        self._wasted += len(self._inside) - len(live)
        self._generator = generator

    def close(self) -> None:
        """Give the generator back."""
        if self._generator is not None:
            self._pool.give(self._take_generator())

    def _choose(self, row: SequenceState, logits: NDArray[np.float32]) -> int:
        if row.finished:
            return self._eos
        try:
            return row.choose(logits)
        except GenAIError as error:
            row.fail(error)
            return self._eos

    def _open(self) -> None:
        self.close()
        self._inside = self.live
        self._room = _first_room(self._inside)
        sequences = [row.sequence for row in self._inside]
        width = max(map(len, sequences))
        generator, _ = self._pool.take(
            len(sequences), width + self._room, self._budget, adapter=self.rows[0].adapter
        )
        start = time.perf_counter()
        generator.append(sequences)
        self._chunks.measured(width * len(sequences), time.perf_counter() - start)
        self._generator = generator


class Single(_Holder):
    """One row in a generator of its own.

    Its prompt is computed in chunks, from where it differs from one that was computed before.

    Args:
        pool: Where generators come from.
        row: The row.
        chunks: How a prompt is cut; None computes it at once, for models that need that.
        context_length: How many tokens a generator may hold at most.
        budget: How many tokens of KV memory there are for the row and for what the pool keeps.
    """

    def __init__(
        self,
        pool: GeneratorPool,
        row: SequenceState,
        chunks: ChunkSize | None,
        context_length: int,
        budget: int,
    ) -> None:
        self.rows = (row,)
        self._row = row
        self._pool = pool
        self._chunks = chunks
        self._budget = budget
        self._computed = 0
        self._greedy = False
        # Where a follow-up may begin like this row, its KV cache has room for one.
        most = most_kv_tokens(self.rows)
        roomy = min(len(row.prompt) + len(row.tokens) + GROWTH, context_length, budget)
        self._roomy = roomy if pool.reuses_prefixes else 0
        self.kv_tokens = max(most, self._roomy)

    @property
    def live(self) -> list[SequenceState]:
        """The row, unless it is over."""
        return [] if self._row.finished else [self._row]

    @property
    def wasteful(self) -> bool:
        """No row is computed that is over."""
        return False

    def step(self, *, alone: bool) -> None:
        """Compute a chunk of the prompt, or the next token.

        Args:
            alone: Whether nobody else waits for a turn.
        """
        row = self._row
        length = len(row.prompt) + len(row.tokens)
        # A prompt that is only scored needs no room behind it.
        needed = length + min(row.remaining, 1)
        if self._generator is None or needed > self._generator.max_length:
            self._open()
        generator = self._take_generator()
        if not self._greedy and length - self._computed > bool(row.tokens):
            self._prefill(generator, alone=alone)
        elif row.is_greedy and not row.drafts:
            self._take_greedily(generator)
        else:
            self._choose(generator)
        self._generator = generator

    def close(self) -> None:
        """Give the generator back, with what is computed in it."""
        if self._generator is not None:
            # The token that a generator has chosen last is not computed.
            computed = -1 if self._greedy else self._computed
            self._pool.give(self._take_generator(), self._row.sequence[:computed])

    def _open(self) -> None:
        row = self._row
        self.close()
        self._greedy = False
        sequence = row.sequence
        scored = row.scores_prompt and not row.tokens  # all of its logits are wanted
        self._generator, self._computed = self._pool.take(
            1,
            len(sequence) + _first_room(self.rows),
            self._budget,
            roomy=self._roomy,
            least=len(sequence) + min(row.remaining, ENOUGH),
            adapter=row.adapter,
            prompt=sequence[:0] if scored else sequence,
        )
        if not row.tokens:
            row.cached_tokens = self._computed

    def _prefill(self, generator: NativeGenerator, *, alone: bool) -> None:
        row = self._row
        first = self._computed
        left = row.sequence[first:]
        size = len(left) if self._chunks is None else self._chunks.next(len(left), alone=alone)
        start = time.perf_counter()
        generator.extend(left[:size])
        if self._chunks is not None:
            self._chunks.measured(size, time.perf_counter() - start)
        self._computed += size
        if row.tokens:
            return
        if row.scores_prompt:
            row.take_prompt(first, generator.all_logits())
        if self._computed == len(row.prompt):
            row.end_prompt()

    def _take_greedily(self, generator: NativeGenerator) -> None:
        """Let the generator choose, which it does from here on."""
        row = self._row
        if not self._greedy and len(row.prompt) + len(row.tokens) > self._computed:
            generator.extend(np.array(row.tokens[-1:], dtype=np.int32))
        self._greedy = True
        row.take(generator.advance()[0])

    def _choose(self, generator: NativeGenerator) -> None:
        """Compute the token that was chosen last, with guesses at the next ones, and choose."""
        row = self._row
        draft: list[int] = []
        if len(row.prompt) + len(row.tokens) > self._computed:
            draft = row.draft()[: generator.max_length - self._computed - 1]
            generator.extend(np.array([row.tokens[-1], *draft], dtype=np.int32))
            self._computed += 1 + len(draft)
        known = len(row.tokens)
        try:
            row.advance(generator.all_logits() if draft else generator.logits(), draft)
        except GenAIError as error:
            row.fail(error)
        if wrong := max(0, len(draft) + 1 - (len(row.tokens) - known)) if draft else 0:
            self._computed -= wrong
            generator.rewind(self._computed)
