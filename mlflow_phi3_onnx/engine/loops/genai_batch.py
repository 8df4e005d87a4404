"""Sequences inside onnxruntime-genai's generators: several in one, or one alone.

A generator's KV cache is allocated, and zeroed, as a whole. Sequences that may get long begin with
a small one; when that is full, those that are not finished move to a larger one, which computes
their tokens again as a prompt. A cache that grows needs none of that.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_phi3_onnx.engine.loops.genai_pool import GeneratorPool
    from mlflow_phi3_onnx.engine.sequence.state import SequenceState
    from mlflow_phi3_onnx.runtime.genai import NativeGenerator

__all__ = ["Batch", "Group", "Single", "most_kv_tokens"]

GROWTH = 512
"""Tokens of KV cache that a generator begins with beyond its prompts, and grows by, at least."""

ENOUGH = 128
"""Tokens of room that are enough for a completion to begin in, where its prompt is found again."""


def most_kv_tokens(states: Sequence[SequenceState]) -> int:
    """Count the tokens of KV cache that sequences take at most together: the widest's, for each."""
    return len(states) * (max(len(s.prompt) for s in states) + max(s.max_tokens for s in states))


class Batch(ABC):
    """Sequences in one generator.

    Args:
        pool: Where generators come from.
        states: The sequences, of one adapter.
        free: Counts the tokens of KV memory that other batches leave, for it and for what the
            pool keeps.

    Attributes:
        states: The sequences.
        kv_tokens: How many tokens of KV cache they take at most.
    """

    def __init__(
        self,
        pool: GeneratorPool,
        states: Sequence[SequenceState],
        free: Callable[[Batch], int],
    ) -> None:
        self.states = states
        self.kv_tokens = most_kv_tokens(states)
        self._pool = pool
        self._free = free
        self._generator: NativeGenerator | None = None

    @property
    def live(self) -> list[SequenceState]:
        """The sequences that are not finished."""
        return [state for state in self.states if not state.finished]

    @property
    def wasteful(self) -> bool:
        """Whether those that are not finished had better move to a smaller generator."""
        return False

    def _first_room(self, states: Sequence[SequenceState]) -> int:
        """Count the tokens that a generator has room for beyond those that are there already."""
        longest = max(state.remaining for state in states)
        if self._pool.grows:
            return longest
        return min(longest, max(GROWTH, *(len(state.tokens) for state in states)))

    @abstractmethod
    def step(self, *, alone: bool) -> None:
        """Compute one more token for every sequence that is not finished, or a chunk of a prompt.

        Args:
            alone: Whether nobody else waits for a turn.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the generator back, with what is computed in it."""

    def _put_generator(self, generator: NativeGenerator) -> None:
        """Put one from the pool in, which may be larger than what was asked for."""
        self._generator = generator
        if not self._pool.grows:
            self.kv_tokens = max(self.kv_tokens, generator.rows * generator.max_length)

    def _take_generator(self) -> NativeGenerator:
        """Take the generator out, so that one that fails is not used again."""
        generator, self._generator = self._generator, None
        assert generator is not None, "there is no generator, or it has failed"
        return generator


class Group(Batch):
    """Several sequences in one generator.

    They start together, and a sequence that is finished is computed on until the last one is, or
    until those that are not move to a smaller generator.
    """

    _inside: Sequence[SequenceState] = ()
    _room = 0
    _wasted = 0

    @property
    def wasteful(self) -> bool:
        """Whether sequences that are finished have cost as much as moving the others would have.

        So at worst twice as much is computed as by a loop that knew when each sequence ends. Or
        whether the generator is full.
        """
        live = self.live
        return bool(live) and (
            self._room == 0
            or self._wasted >= sum(len(state.prompt) + len(state.tokens) for state in live)
        )

    def step(self, *, alone: bool) -> None:
        """Compute one more token for every sequence that is not finished."""
        del alone  # the prompts of several sequences cannot be computed in chunks
        if self._generator is None:
            self._open()
        generator = self._take_generator()
        self._room -= 1
        live = [state for state in self._inside if not state.finished]
        if all(state.is_greedy for state in live):
            for state, token in zip(self._inside, generator.advance(), strict=True):
                if not state.finished:
                    state.take(token)
        else:
            for state, logits in zip(self._inside, generator.logits(), strict=True):
                if not state.finished:
                    state.advance(logits[None])
            eos = self._pool.eos
            generator.force([eos if s.finished else s.tokens[-1] for s in self._inside])
        self._wasted += len(self._inside) - len(live)
        self._generator = generator

    def close(self) -> None:
        """Give the generator back."""
        if self._generator is not None:
            self._pool.give(self._take_generator())

    def _open(self) -> None:
        self._inside = self.live
        self._room = self._first_room(self._inside)
        sequences = [state.sequence for state in self._inside]
        width = max(map(len, sequences))
        adapter = self.states[0].options.adapter
        generator, _ = self._pool.take(
            len(sequences), width + self._room, self._free(self), adapter=adapter
        )
        start = time.perf_counter()
        generator.append(sequences)
        self._pool.chunks.measured(width * len(sequences), time.perf_counter() - start)
        self._put_generator(generator)
        for state in self._inside:
            if not state.tokens:
                state.end_prompt()


class Single(Batch):
    """One sequence in a generator of its own.

    Its prompt is computed in chunks, where the model allows that, from where it differs from one
    that was computed before.
    """

    def __init__(
        self,
        pool: GeneratorPool,
        states: Sequence[SequenceState],
        free: Callable[[Batch], int],
    ) -> None:
        super().__init__(pool, states, free)
        (self._state,) = states
        self._computed = 0
        self._greedy = False
        self._roomy = 0
        if pool.reuses_prefixes and not pool.grows:
            # A follow-up may begin like this sequence: its KV cache has room for one.
            length = len(self._state.prompt) + len(self._state.tokens)
            self._roomy = min(length + GROWTH, pool.context_length, free(self))
        self.kv_tokens = max(self.kv_tokens, self._roomy)

    def step(self, *, alone: bool) -> None:
        """Compute a chunk of the prompt, or the next token."""
        state = self._state
        length = len(state.prompt) + len(state.tokens)
        # A prompt that is only scored needs no room behind it.
        needed = length + min(state.remaining, 1)
        if (
            self._generator is None
            or needed > self._generator.max_length
            or self._computed <= self._pool.first_range < length
        ):
            self._open()
        generator = self._take_generator()
        if not self._greedy and length - self._computed > bool(state.tokens):
            self._prefill(generator, alone=alone)
        elif state.is_greedy and not (state.options.draft_tokens or state.options.ignore_eos):
            self._take_greedily(generator)
        else:
            self._choose(generator)
        self._generator = generator

    def close(self) -> None:
        """Give the generator back, with what is computed in it."""
        if self._generator is not None:
            # The token that a generator has chosen last is not computed, and a cache that grows can
            # only be taken back by one token at least.
            computed = -1 - self._pool.grows if self._greedy else self._computed
            self._pool.give(self._take_generator(), self._state.sequence[:computed])

    def _open(self) -> None:
        state = self._state
        self.close()
        self._greedy = False
        sequence = state.sequence
        scored = state.options.prompt_logprobs and not state.tokens  # all of its logits are wanted
        generator, self._computed = self._pool.take(
            1,
            len(sequence) + self._first_room(self.states),
            self._free(self),
            roomy=self._roomy,
            least=len(sequence) + min(state.remaining, ENOUGH),
            adapter=state.options.adapter,
            prompt=sequence[:0] if scored else sequence,
        )
        self._put_generator(generator)
        if not state.tokens:
            state.cached_tokens = self._computed

    def _prefill(self, generator: NativeGenerator, *, alone: bool) -> None:
        state, pool, first = self._state, self._pool, self._computed
        left = state.sequence[first:]
        size = pool.chunks.next(len(left), alone=alone) if pool.goes_back else len(left)
        start = time.perf_counter()
        generator.extend(left[:size])
        pool.chunks.measured(size, time.perf_counter() - start)
        self._computed += size
        if state.tokens:
            return
        if state.options.prompt_logprobs:
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
        state.advance(generator.all_logits() if draft else generator.logits(), draft)
        wrong = 1 + len(draft) - (len(state.tokens) - known)
        if draft and wrong:
            self._computed -= wrong
            generator.rewind(self._computed)
