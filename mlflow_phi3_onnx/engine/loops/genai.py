"""The reference loop: onnxruntime-genai's generator, for every model and device that it runs.

The generator's batch is fixed: its rows start together, and nothing joins it later. Sampling
options are fixed for a whole generator too, so each row chooses its own token from the logits;
where every row takes the likeliest token, the generator chooses itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mlflow_phi3_onnx.engine.loops.base import Failing
from mlflow_phi3_onnx.engine.loops.genai_batch import Group, Single, most_kv_tokens
from mlflow_phi3_onnx.engine.loops.genai_pool import GeneratorPool
from mlflow_phi3_onnx.engine.loops.prefill import ChunkSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.engine.sequence.state import Row
    from mlflow_phi3_onnx.runtime.genai import NativeModel

__all__ = ["GenAILoop", "GenAITraits"]

_Batch: TypeAlias = "Group | Single"


@dataclass(frozen=True, kw_only=True)
class GenAITraits:
    """What a model allows onnxruntime-genai to do.

    Attributes:
        context_length: Tokens of prompt and answer together.
        eos: An id that ends an answer.
        groups: Whether rows can share a generator.
        goes_back: Whether a cache can be taken back to an earlier state, and prompts be computed
            in pieces.
        all_logits: Whether the graph gives the logits of every token of a prompt.
    """

    context_length: int
    eos: int
    groups: bool = True
    goes_back: bool = True
    all_logits: bool = True


class GenAILoop:
    """Runs a model with onnxruntime-genai's generator.

    Rows of one adapter that wait at the same time share a generator, those of like lengths first,
    so that little is padded and few are computed on when they are over. The next ones start beside
    them, and every generator has its turn, so nobody waits for someone else's whole answer.

    Args:
        model: The loaded model.
        traits: What it allows.
        kv_tokens: How many tokens the KV memory holds.
        max_batch_size: The most rows that are computed together.
        reuse_prefixes: Whether a prompt that begins as an earlier one is computed only from where
            it differs.
        patient: Whether the interpreter's lock may be held for as long as the prompts of a batch
            take. Otherwise only short ones are computed together.
    """

    name = "genai"

    def __init__(
        self,
        model: NativeModel,
        traits: GenAITraits,
        *,
        kv_tokens: int,
        max_batch_size: int,
        reuse_prefixes: bool = True,
        patient: bool = True,
    ) -> None:
        self._pool: GeneratorPool | None = GeneratorPool(
            model, keeps=traits.goes_back, reuses_prefixes=reuse_prefixes
        )
        self._traits = traits
        self._kv_tokens = kv_tokens
        self._max_batch_size = max_batch_size
        self._patient = patient
        self._chunks = ChunkSize()
        self._batches: list[_Batch] = []

    @property
    def scores(self) -> bool:
        """Whether it gives the logits of a prompt's tokens."""
        return self._traits.all_logits

    @property
    def drafts(self) -> bool:
        """Whether it can check guesses, and take back wrong ones."""
        return self._traits.all_logits and self._traits.goes_back

    def needs(self, row: Row) -> int:
        """Count the tokens of KV cache that a row takes at most, alone."""
        return most_kv_tokens([row])

    @property
    def busy(self) -> bool:
        """Whether a row is not over."""
        return bool(self._batches)

    def admit(self, waiting: Sequence[Row]) -> set[Row]:
        """Begin with the waiting rows, as far as there is room.

        Where more wait than there is room for, they wait until half of it is free: many small
        batches would take longer than one.
        """
        running = sum(len(batch.live) for batch in self._batches)
        room = self._max_batch_size - running
        if len(waiting) > room and 2 * running > self._max_batch_size:
            return set()
        left = list(waiting)
        taken: set[Row] = set()
        while left and len(taken) < room:
            rows = self._next_batch(left, self._free(), room - len(taken))
            if not rows:
                break
            self._batches.append(self._batch(rows))
            taken.update(rows)
            left = [row for row in left if row not in taken]
        return taken

    def step(self) -> None:
        """Compute one more token for every row of every batch, or a piece of a prompt."""
        alone = len(self._batches) == 1
        for batch in self._batches:
            if batch.live:
                with Failing(batch.rows):
                    batch.step(alone=alone and self._patient)
        for batch in [batch for batch in self._batches if batch.wasteful or not batch.live]:
            self._batches.remove(batch)
            batch.close()
            if batch.live:
                self._batches.append(self._batch(batch.live))

    def interrupt(self, row: Row) -> None:
        """Do nothing: onnxruntime-genai cannot be stopped within a step."""

    def close(self) -> None:
        """Free the model."""
        self._batches = []
        self._pool = None

    def _free(self) -> int:
        return self._kv_tokens - sum(batch.kv_tokens for batch in self._batches)

    def _batch(self, rows: Sequence[Row]) -> _Batch:
        assert self._pool is not None, "the loop is closed"
        if len(rows) > 1:
            return Group(self._pool, rows, self._traits.eos, self._chunks, self._free())
        chunks = self._chunks if self._traits.goes_back else None
        return Single(self._pool, rows[0], chunks, self._traits.context_length, self._free())

    def _next_batch(self, waiting: Sequence[Row], free: int, most: int) -> list[Row]:
        """Choose rows around the one that has waited longest, as long as they fit."""
        first, *others = waiting
        if not self._traits.groups or _wants_a_generator(first):
            others = []
        others = [
            row for row in others if row.adapter == first.adapter and not _wants_a_generator(row)
        ]
        others.sort(key=lambda row: _difference(row, first))
        rows: list[Row] = []
        for row in [first, *others]:
            joined = [*rows, row]
            if len(rows) == most or most_kv_tokens(joined) > free:
                break
            if rows and not self._patient and not self._short(joined):
                break
            rows = joined
        return rows

    def _short(self, rows: Sequence[Row]) -> bool:
        tokens = len(rows) * max(len(row.prompt) for row in rows)
        return self._chunks.next(tokens, alone=True) == tokens


def _difference(one: Row, other: Row) -> int:
    """Count the tokens that one of two rows is computed in vain beside the other, at most."""
    prompts = abs(len(one.prompt) - len(other.prompt))
    return prompts + abs(one.max_tokens - other.max_tokens)


def _wants_a_generator(row: Row) -> bool:
    """Whether a row cannot share one: its prompt's logits are wanted, or guesses are checked."""
    return row.scores_prompt or row.drafts
