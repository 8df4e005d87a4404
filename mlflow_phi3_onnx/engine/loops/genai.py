"""The reference loop: onnxruntime-genai's generator, for every model and device that it runs.

The generator's batch is fixed: its sequences start together, and nothing joins it later. Sampling
options are fixed for a whole generator too, so each sequence chooses its own token from the logits;
where every sequence takes the most likely token, the generator chooses itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.engine.loops.base import Failing, Loop
from mlflow_phi3_onnx.engine.loops.genai_batch import Batch, Group, Single, most_kv_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.engine.loops.genai_pool import GeneratorPool
    from mlflow_phi3_onnx.engine.sequence.state import SequenceState

__all__ = ["GenAILoop"]


class GenAILoop(Loop):
    """Runs a model with onnxruntime-genai's generator.

    Sequences of one adapter that wait at the same time share a generator, those of like lengths
    first, so that little is padded and few are computed on when they are finished. The next ones
    start beside them, and every generator has its turn, so nobody waits for someone else's whole
    completion.

    Args:
        pool: Makes the generators.
        kv_tokens: How many tokens the KV memory holds.
        max_batch_size: The most sequences that are computed together.
        all_logits: Whether the graph gives the logits of every token of a prompt.
        widest: The most tokens that each sequence may come to have in a generator that several
            share; 0 where none can be shared.
        patient: Whether the interpreter's lock may be held for as long as the prompts of a batch
            take. Otherwise only short ones are computed together.
    """

    name = "genai"

    def __init__(
        self,
        pool: GeneratorPool,
        *,
        kv_tokens: int,
        max_batch_size: int,
        all_logits: bool,
        widest: int,
        patient: bool,
    ) -> None:
        self.scores = all_logits
        self.drafts = all_logits and pool.goes_back
        self._pool = pool
        self._kv_tokens = kv_tokens
        self._max_batch_size = max_batch_size
        self.together = widest > 0
        self._widest = widest
        self._patient = patient
        self._batches: list[Batch] = []

    @property
    def busy(self) -> bool:
        """Whether a sequence is not finished."""
        return bool(self._batches)

    def admit(self, waiting: Sequence[SequenceState]) -> set[SequenceState]:
        """Begin with the waiting sequences, as far as there is room.

        Where more wait than there is room for, they wait until half of it is free: many small
        batches would take longer than one.
        """
        running = sum(len(batch.live) for batch in self._batches)
        room = self._max_batch_size - running
        if len(waiting) > room and 2 * running > self._max_batch_size:
            return set()
        left = list(waiting)
        taken: set[SequenceState] = set()
        while left and len(taken) < room:
            states = self._next_batch(left, room - len(taken))
            if not states:
                break
            self._begin(states)
            taken.update(states)
            left = [state for state in left if state not in taken]
        return taken

    def step(self) -> None:
        """Compute one more token for every sequence of every batch, or a chunk of a prompt."""
        alone = len(self._batches) == 1
        for batch in self._batches:
            if batch.live:
                with Failing(batch.states):
                    batch.step(alone=alone and self._patient)
        for batch in [batch for batch in self._batches if batch.wasteful or not batch.live]:
            self._batches.remove(batch)
            batch.close()
            if live := batch.live:
                self._begin(live)

    def close(self) -> None:
        """Free the model."""
        self._batches = []
        del self._pool

    def _free(self, batch: Batch | None = None) -> int:
        """Count the tokens of KV memory that all batches leave, or all others."""
        others = [other for other in self._batches if other is not batch]
        return self._kv_tokens - sum(other.kv_tokens for other in others)

    def _begin(self, states: Sequence[SequenceState]) -> None:
        # The pad id at the end of one of several would be taken for padding.
        pad = self._pool.pad
        alone = [s for s in states if s.sequence[-1] == pad] if len(states) > 1 else []
        rest = [state for state in states if state not in alone]
        for group in [*([state] for state in alone), *([rest] if rest else [])]:
            kind = Group if len(group) > 1 else Single
            self._batches.append(kind(self._pool, group, self._free))

    def _next_batch(self, waiting: Sequence[SequenceState], most: int) -> list[SequenceState]:
        """Choose sequences around the one that has waited longest, as long as they fit."""
        first, *others = waiting
        others = [state for state in others if self._can_share(first, state)]
        others.sort(key=lambda state: _difference(state, first))
        free = self._free()
        states: list[SequenceState] = []
        for state in [first, *others]:
            joined = [*states, state]
            if len(states) == most or most_kv_tokens(joined) > free:
                break
            if states and most_kv_tokens(joined) > len(joined) * self._widest:
                break
            if states and not self._patient and not self._short(joined):
                break
            states = joined
        return states

    def _can_share(self, *states: SequenceState) -> bool:
        """Whether sequences can share a generator.

        None is scored, no drafts are verified, and none goes on where the generator would not.
        """
        asked = [state.options for state in states]
        return (
            self.together
            and not any(o.prompt_logprobs or o.draft_tokens or o.ignore_eos for o in asked)
            and len({options.adapter for options in asked}) == 1
        )

    def _short(self, states: Sequence[SequenceState]) -> bool:
        tokens = len(states) * max(len(state.prompt) for state in states)
        return self._pool.chunks.next(tokens, alone=True) == tokens


def _difference(one: SequenceState, other: SequenceState) -> int:
    """Count the tokens that one of two sequences is computed in vain beside the other, at most."""
    prompts = abs(len(one.prompt) - len(other.prompt))
    return prompts + abs(one.max_tokens - other.max_tokens)
