"""The reference loop: onnxruntime-genai's generator, for every model and device that it runs.

The generator's batch is fixed: its rows start together, and a row that has ended is computed on
until the last one ends. Sampling options are fixed for a whole generator too, so each row chooses
its own token from the logits and forces it; where every row takes the likeliest token, the
generator chooses itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.generation.loop import failing
from mlflow_phi3_onnx.runtime import MAX_BATCH_SIZE, NativeGenerator, NativeModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.generation.row import Row

__all__ = ["GenAILoop"]

GROWTH = 512
"""How many tokens of KV cache a batch starts with beyond its prompts, and grows by, at least."""


class GenAILoop:
    """Runs a model with onnxruntime-genai's generator.

    Rows that wait at the same time share a batch, those of a like length first, so that little is
    padded. A batch never takes in a row later; the next one starts beside it as soon as memory
    allows, and every batch has its turn, so nobody waits for someone else's whole answer.

    Args:
        model: The loaded model.
        eos: An id that ends an answer.
        kv_tokens: How many tokens the KV memory holds.
        max_batch_size: The most rows of one batch.
    """

    def __init__(
        self, model: NativeModel, eos: int, *, kv_tokens: int, max_batch_size: int = MAX_BATCH_SIZE
    ) -> None:
        self._model: NativeModel | None = model
        self._eos = eos
        self._kv_tokens = kv_tokens
        self._max_batch_size = max_batch_size
        self._batches: list[_Batch] = []

    def needs(self, row: Row) -> int:
        """Count the tokens of KV cache that a row takes at most, alone."""
        return _kv_tokens([row])

    @property
    def busy(self) -> bool:
        """Whether a batch is not over."""
        return bool(self._batches)

    def admit(self, waiting: Sequence[Row]) -> set[Row]:
        """Begin batches of the waiting rows, as far as memory allows."""
        assert self._model is not None, "the loop is closed"
        left = list(waiting)
        taken: set[Row] = set()
        while left:
            free = self._kv_tokens - sum(batch.kv_tokens for batch in self._batches)
            rows = self._next_batch(left, free)
            if not rows:
                break
            self._batches.append(_Batch(self._model, rows, self._eos))
            taken.update(rows)
            left = [row for row in left if row not in taken]
        return taken

    def step(self) -> None:
        """Compute one more token for every row of every batch."""
        for batch in self._batches:
            if not batch.over:
                with failing(batch.rows):
                    batch.step()
        self._batches = [batch for batch in self._batches if not batch.over]

    def interrupt(self, row: Row) -> None:
        """Do nothing: onnxruntime-genai cannot be stopped within a step."""

    def close(self) -> None:
        """Free the model."""
        self._batches = []
        self._model = None

    def _next_batch(self, waiting: Sequence[Row], free: int) -> list[Row]:
        """Choose rows around the one that has waited longest, as long as they fit."""
        first, *others = waiting
        others.sort(key=lambda row: abs(len(row.prompt) - len(first.prompt)))
        rows: list[Row] = []
        for row in [first, *others]:
            if len(rows) == self._max_batch_size or _kv_tokens([*rows, row]) > free:
                break
            rows.append(row)
        return rows


class _Batch:
    """Rows inside one generator.

    The KV cache of a generator is allocated, and zeroed, as a whole. A batch that may get long
    begins with a small one; when that is full, the rows that are not over move to a larger one.
    """

    def __init__(self, model: NativeModel, rows: Sequence[Row], eos: int) -> None:
        self.rows = rows
        self.kv_tokens = _kv_tokens(rows)
        self._model = model
        self._eos = eos
        self._inside: list[Row] = []
        self._generator: NativeGenerator | None = None
        self._room = 0

    @property
    def over(self) -> bool:
        """Whether every row is over."""
        return all(row.over for row in self.rows)

    def step(self) -> None:
        """Compute one more token for every row that is not over."""
        if self._room == 0:
            self._open_generator()
        generator = self._generator
        assert generator is not None
        self._room -= 1
        live = [row for row in self._inside if not row.over]
        if all(row.takes_likeliest for row in live):
            tokens = generator.advance()
        else:
            logits = generator.logits()
            tokens = [self._choose(row, logits[i]) for i, row in enumerate(self._inside)]
            generator.force(tokens)
        for row, token in zip(self._inside, tokens, strict=True):
            if not row.over:
                row.take(token)

    def _choose(self, row: Row, logits: NDArray[np.float32]) -> int:
        if row.over:
            return self._eos
        try:
            return row.choose(logits)
        except GenAIError as error:
            row.fail(error)
            return self._eos

    def _open_generator(self) -> None:
        self._inside = [row for row in self.rows if not row.over]
        self._generator = None
        longest = max(row.remaining for row in self._inside)
        generated = max(len(row.tokens) for row in self._inside)
        self._room = min(longest, max(GROWTH, generated))
        sequences = [row.sequence for row in self._inside]
        width = max(map(len, sequences))
        self._generator = self._model.generator(len(sequences), width + self._room)
        self._generator.append(sequences)


def _kv_tokens(rows: Sequence[Row]) -> int:
    """Count the tokens of a batch's KV cache: the widest row's, for every row."""
    return len(rows) * (max(len(r.prompt) for r in rows) + max(r.max_tokens for r in rows))
