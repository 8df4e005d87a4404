"""Sequences inside onnxruntime-genai's generators: several in one, or one alone.

A generator's KV cache is allocated, and zeroed, as a whole. Sequences that may get long begin with
a small one; when that is full, those that are not finished move to a larger one, which computes
their tokens again as a prompt.
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
"""Tokens of room that are enough for a completion to begin in, where its prompt is found again."""


def most_kv_tokens(states: Sequence[SequenceState]) -> int:
    """Count the tokens of KV cache that sequences take at most together: the widest's, for each."""
    return len(states) * (max(len(r.prompt) for r in states) + max(r.max_tokens for r in states))


def _first_room(states: Sequence[SequenceState]) -> int:
    longest = max(state.remaining for state in states)
    return min(longest, max(GROWTH, *(len(state.tokens) for state in states)))


class _Holder:
    """Holds a generator, or none."""

    _generator: NativeGenerator | None = None

    def _take_generator(self) -> NativeGenerator:
        """Take the generator out, so that one that fails is not used again."""
        generator, self._generator = self._generator, None
        assert generator is not None, "there is no generator, or it has failed"
        return generator


class Group(_Holder):
    """Several sequences in one generator.

    They start together, and a sequence that is finished is computed on until the last one is, or
    until those that are not move to a smaller generator.

    Args:
        pool: Where generators come from.
        states: The sequences, two or more, of one adapter.
        eos: An end-of-sequence id, for the sequences that are finished.
        chunks: What keeps the speed of prompts.
        budget: How many tokens of KV memory there are for them and for what the pool keeps.
    """

    def __init__(
        self,
        pool: GeneratorPool,
        states: Sequence[SequenceState],
        eos: int,
        chunks: ChunkSize,
        budget: int,
    ) -> None:
        self.states = states
        self.kv_tokens = most_kv_tokens(states)
        self._pool = pool
        self._eos = eos
        self._chunks = chunks
        self._budget = budget
        self._inside: Sequence[SequenceState] = ()
        self._room = 0
        self._wasted = 0

    @property
    def live(self) -> list[SequenceState]:
        """The sequences that are not over."""
        return [state for state in self.states if not state.finished]

    @property
    def wasteful(self) -> bool:
        """Whether sequences that are finished have cost as much as moving the others would have.

        So at worst twice as much is computed as by a loop that knew when each sequence ends.
        """
        live = self.live
        return bool(live) and self._wasted >= sum(
            len(state.prompt) + len(state.tokens) for state in live
        )

    def step(self, *, alone: bool) -> None:
        """Compute one more token for every sequence that is not over."""
        del alone  # the prompts of several sequences cannot be computed in chunks
        if self._room == 0:
            self._open()
        generator = self._take_generator()
        self._room -= 1
        live = [state for state in self._inside if not state.finished]
        if all(state.is_greedy for state in live):
            tokens = generator.advance()
        else:
            logits = generator.logits()
            tokens = [self._choose(state, logits[i]) for i, state in enumerate(self._inside)]
            generator.force(tokens)
        for state, token in zip(self._inside, tokens, strict=True):
            if not state.finished:
                state.take(token)
        self._wasted += len(self._inside) - len(live)
        self._generator = generator

    def close(self) -> None:
        """Give the generator back."""
        if self._generator is not None:
            self._pool.give(self._take_generator())

    def _choose(self, state: SequenceState, logits: NDArray[np.float32]) -> int:
        if state.finished:
            return self._eos
        try:
            return state.choose(logits)
        except GenAIError as error:
            state.fail(error)
            return self._eos

    def _open(self) -> None:
        self.close()
        self._inside = self.live
        self._room = _first_room(self._inside)
        sequences = [state.sequence for state in self._inside]
        width = max(map(len, sequences))
        generator, _ = self._pool.take(
            len(sequences), width + self._room, self._budget, adapter=self.states[0].adapter
        )
        start = time.perf_counter()
        generator.append(sequences)
        self._chunks.measured(width * len(sequences), time.perf_counter() - start)
        self._generator = generator


class Single(_Holder):
    """One sequence in a generator of its own.

    Its prompt is computed in chunks, from where it differs from one that was computed before.

    Args:
        pool: Where generators come from.
        state: The sequence.
        chunks: How a prompt is cut; None computes it at once, for models that need that.
        context_length: How many tokens a generator may hold at most.
        budget: How many tokens of KV memory there are for the sequence and for what the pool keeps.
    """

    def __init__(
        self,
        pool: GeneratorPool,
        state: SequenceState,
        chunks: ChunkSize | None,
        context_length: int,
        budget: int,
    ) -> None:
        self.states = (state,)
        self._state = state
        self._pool = pool
        self._chunks = chunks
        self._budget = budget
        self._computed = 0
        self._greedy = False
        # Where a follow-up may begin like this sequence, its KV cache has room for one.
        most = most_kv_tokens(self.states)
        roomy = min(len(state.prompt) + len(state.tokens) + GROWTH, context_length, budget)
        self._roomy = roomy if pool.reuses_prefixes else 0
        self.kv_tokens = max(most, self._roomy)

    @property
    def live(self) -> list[SequenceState]:
        """The sequence, unless it is finished."""
        return [] if self._state.finished else [self._state]

    @property
    def wasteful(self) -> bool:
        """No sequence is computed that is finished."""
        return False

    def step(self, *, alone: bool) -> None:
        """Compute a chunk of the prompt, or the next token.

        Args:
            alone: Whether nobody else waits for a turn.
        """
        state = self._state
        length = len(state.prompt) + len(state.tokens)
        # A prompt that is only scored needs no room behind it.
        needed = length + min(state.remaining, 1)
        if self._generator is None or needed > self._generator.max_length:
            self._open()
        generator = self._take_generator()
        if not self._greedy and length - self._computed > bool(state.tokens):
            self._prefill(generator, alone=alone)
        elif state.is_greedy and not state.drafts:
            self._take_greedily(generator)
        else:
            self._choose(generator)
        self._generator = generator

    def close(self) -> None:
        """Give the generator back, with what is computed in it."""
        if self._generator is not None:
            # The token that a generator has chosen last is not computed.
            computed = -1 if self._greedy else self._computed
            self._pool.give(self._take_generator(), self._state.sequence[:computed])

    def _open(self) -> None:
        state = self._state
        self.close()
        self._greedy = False
        sequence = state.sequence
        scored = state.scores_prompt and not state.tokens  # all of its logits are wanted
        self._generator, self._computed = self._pool.take(
            1,
            len(sequence) + _first_room(self.states),
            self._budget,
            roomy=self._roomy,
            least=len(sequence) + min(state.remaining, ENOUGH),
            adapter=state.adapter,
            prompt=sequence[:0] if scored else sequence,
        )
        if not state.tokens:
            state.cached_tokens = self._computed

    def _prefill(self, generator: NativeGenerator, *, alone: bool) -> None:
        state = self._state
        first = self._computed
        left = state.sequence[first:]
        size = len(left) if self._chunks is None else self._chunks.next(len(left), alone=alone)
        start = time.perf_counter()
        generator.extend(left[:size])
        if self._chunks is not None:
            self._chunks.measured(size, time.perf_counter() - start)
        self._computed += size
        if state.tokens:
            return
        if state.scores_prompt:
            state.take_prompt(first, generator.all_logits())
        if self._computed == len(state.prompt):
            state.end_prompt()

    def _take_greedily(self, generator: NativeGenerator) -> None:
        """Let the generator choose, which it does from here on."""
        state = self._state
        if not self._greedy and len(state.prompt) + len(state.tokens) > self._computed:
            generator.extend(np.array(state.tokens[-1:], dtype=np.int32))
        self._greedy = True
        state.take(generator.advance()[0])

    def _choose(self, generator: NativeGenerator) -> None:
        """Compute the token that was chosen last, with draft tokens, and choose."""
        state = self._state
        draft: list[int] = []
        if len(state.prompt) + len(state.tokens) > self._computed:
            draft = state.draft()[: generator.max_length - self._computed - 1]
            generator.extend(np.array([state.tokens[-1], *draft], dtype=np.int32))
            self._computed += 1 + len(draft)
        known = len(state.tokens)
        try:
            state.advance(generator.all_logits() if draft else generator.logits(), draft)
        except GenAIError as error:
            state.fail(error)
        if wrong := max(0, len(draft) + 1 - (len(state.tokens) - known)) if draft else 0:
            self._computed -= wrong
            generator.rewind(self._computed)
