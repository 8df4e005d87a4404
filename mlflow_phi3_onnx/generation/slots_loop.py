"""Continuous batching on plain ONNX Runtime, for decoder graphs on CPU.

A row takes a slot of the cache, its prompt is computed there in chunks, and then it joins the rows
that are decoded together. It leaves when it is over. Joining and leaving happen between any two
steps; while rows are decoded, chunks of prompts take turns with them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.generation.loop import failing
from mlflow_phi3_onnx.generation.slots import MIN_COMPUTED, SlotTable
from mlflow_phi3_onnx.slot_runtime import Interrupted, SlotSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.generation.row import Row

__all__ = ["SlotsLoop"]

MAX_CHUNK = 512
"""The most tokens of a prompt that are computed at once."""

MIN_CHUNK = 16
"""The fewest, where a prompt is longer: smaller ones use the processor badly."""

STALL = 0.15
"""Seconds that a chunk may hold up rows that are being decoded."""


class SlotsLoop:
    """Runs a decoder graph over a cache of slots.

    Args:
        session: The graph and its cache.
        kv_tokens: How many tokens the KV memory holds.
        reuse_prefixes: Whether a prompt that begins as an earlier one is computed only from where
            it differs.
    """

    def __init__(
        self, session: SlotSession, *, kv_tokens: int, reuse_prefixes: bool = True
    ) -> None:
        self._session: SlotSession | None = session
        self._table = SlotTable(session, kv_tokens, reuse=reuse_prefixes)
        self._prefilling: list[Row] = []
        self._decoding = range(0)
        self._computing: Row | None = None
        self._tokens_per_second = 0.0

    def needs(self, row: Row) -> int:
        """Count the tokens of KV cache that a row takes at most."""
        return len(row.prompt) + row.max_tokens

    @property
    def busy(self) -> bool:
        """Whether a row has a slot."""
        return bool(self._prefilling) or len(self._decoding) > 0

    def admit(self, waiting: Sequence[Row]) -> set[Row]:
        """Give slots to the waiting rows, in order, as far as there is room."""
        taken: set[Row] = set()
        for row in waiting:
            index = self._table.take(row, self.needs(row))
            if index is None:
                break
            row.cached_tokens = len(self._table.slots[index].tokens)
            self._prefilling.append(row)
            taken.add(row)
        return taken

    def step(self) -> None:
        """Compute a chunk of one prompt, and one token of every row that is decoded."""
        self._remove_finished()
        if self._prefilling:
            row = self._prefilling.pop(0)
            with failing([row]):
                self._prefill(row)
        self._remove_finished()
        if self._decoding:
            rows = [self._row(index) for index in self._decoding]
            with failing(rows):
                self._decode(rows)
        self._remove_finished()

    def interrupt(self, row: Row) -> None:
        """Stop a chunk of a row's prompt while it is computed."""
        session = self._session
        if self._computing is row and session is not None:
            session.interrupt()

    def close(self) -> None:
        """Free the model."""
        self._session = None
        self._prefilling = []
        self._decoding = range(0)

    def _prefill(self, row: Row) -> None:
        """Compute the next chunk of a prompt; after the last one, the row is decoded."""
        index = self._index(row)
        slot = self._table.slots[index]
        done = len(slot.tokens)
        size = self._chunk()
        if len(row.prompt) - done - size == 1:
            size -= MIN_COMPUTED - 1
        chunk = row.prompt[done : done + size]
        self._computing = row
        try:
            logits = self._run(index, chunk[None, :], [done + len(chunk)])
        except Interrupted:
            return
        finally:
            self._computing = None
        slot.tokens = row.prompt[: done + len(chunk)]
        if len(slot.tokens) < len(row.prompt):
            self._prefilling.append(row)
            return
        _choose(row, logits[0])
        if not row.over:
            self._join(self._index(row))

    def _decode(self, rows: Sequence[Row]) -> None:
        """Compute the last token of every row, and choose the next."""
        slots = [self._table.slots[index] for index in self._decoding]
        ids = np.array([[row.tokens[-1]] for row in rows], dtype=np.int64)
        lengths = [len(slot.tokens) + 1 for slot in slots]
        logits = self._run(self._decoding.start, ids, lengths)
        for slot, row, token, values in zip(slots, rows, ids[:, 0], logits, strict=True):
            slot.tokens = np.append(slot.tokens, np.int32(token))
            _choose(row, values)

    def _run(self, first: int, ids: NDArray[np.integer], lengths: list[int]) -> NDArray[np.float32]:
        assert self._session is not None, "the loop is closed"
        start = time.perf_counter()
        logits = self._session.run(first, ids.astype(np.int64), lengths)
        if ids.shape[1] >= MIN_CHUNK:
            self._tokens_per_second = ids.size / (time.perf_counter() - start)
        return logits

    def _chunk(self) -> int:
        """Settle how many tokens of a prompt to compute at once."""
        if not self._decoding or not self._tokens_per_second:
            return MAX_CHUNK
        return int(min(max(self._tokens_per_second * STALL, MIN_CHUNK), MAX_CHUNK))

    def _join(self, index: int) -> None:
        """Put a slot beside those that are decoded, for a batch is a range of neighbours."""
        span = self._decoding
        if not span:
            self._decoding = range(index, index + 1)
            return
        target = span.stop if span.stop < len(self._table.slots) else span.start - 1
        if index in (span.start - 1, span.stop):
            target = index
        elif target != index:
            self._table.swap(index, target)
        self._decoding = range(min(span.start, target), max(span.stop, target + 1))

    def _remove_finished(self) -> None:
        for row in [row for row in self._prefilling if row.over]:
            self._prefilling.remove(row)
        # Looked for anew each time: leaving may exchange two slots.
        while (index := self._finished_slot()) is not None:
            self._leave(index)

    def _finished_slot(self) -> int | None:
        slots = enumerate(self._table.slots)
        return next((i for i, slot in slots if slot.row is not None and slot.row.over), None)

    def _leave(self, index: int) -> None:
        span = self._decoding
        self._table.leave(index)
        if index not in span:
            return
        last = span.stop - 1
        if index == span.start:
            self._decoding = range(span.start + 1, span.stop)
            return
        if index != last:
            self._table.swap(index, last)
        self._decoding = range(span.start, last)

    def _index(self, row: Row) -> int:
        return next(i for i, slot in enumerate(self._table.slots) if slot.row is row)

    def _row(self, index: int) -> Row:
        row = self._table.slots[index].row
        assert row is not None
        return row


def _choose(row: Row, logits: NDArray[np.float32]) -> None:
    try:
        token = int(logits.argmax()) if row.takes_likeliest else row.choose(logits)
        row.take(token)
    except GenAIError as error:
        row.fail(error)
