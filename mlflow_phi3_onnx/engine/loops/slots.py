"""Continuous batching on plain ONNX Runtime, for decoder graphs on CPU.

A row takes a slot of the cache, its prompt is computed there in chunks, and then it joins the rows
that are decoded together. It leaves when it is over. Joining and leaving happen between any two
steps; while rows are decoded, chunks of prompts take turns with them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.engine.loops.base import Failing
from mlflow_phi3_onnx.engine.loops.prefill import ChunkSize
from mlflow_phi3_onnx.engine.loops.slot_table import SlotTable
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.runtime.ort import Interrupted, SlotSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.engine.sequence.state import Row

__all__ = ["SlotsLoop"]


class SlotsLoop:
    """Runs a decoder graph over a cache of slots.

    Args:
        session: The graph and its cache.
        kv_tokens: How many tokens the KV memory holds.
        reuse_prefixes: Whether a prompt that begins as an earlier one is computed only from where
            it differs.
    """

    name = "slots"

    def __init__(
        self, session: SlotSession, *, kv_tokens: int, reuse_prefixes: bool = True
    ) -> None:
        self._session: SlotSession | None = session
        self._table = SlotTable(session, kv_tokens, reuse=reuse_prefixes)
        self._prefilling: list[Row] = []
        self._decoding = range(0)
        self._computing: Row | None = None
        self._chunks = ChunkSize()

    @property
    def scores(self) -> bool:
        """Whether it gives the logits of a prompt's tokens: it always does."""
        return True

    @property
    def drafts(self) -> bool:
        """Whether it can check guesses, and take back wrong ones: it always can."""
        return True

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
            row.cached_tokens = len(self._table.slots[index])
            self._prefilling.append(row)
            taken.add(row)
        return taken

    def step(self) -> None:
        """Compute a chunk of one prompt, and one token of every row that is decoded."""
        self._remove_finished()
        if self._prefilling:
            row = self._prefilling.pop(0)
            with Failing([row]):
                self._prefill(row)
        self._remove_finished()
        if self._decoding:
            rows = [self._row(index) for index in self._decoding]
            with Failing(rows):
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
        done = len(slot)
        left = len(row.prompt) - done
        size = self._chunks.next(left, alone=not (self._prefilling or self._decoding))
        chunk = row.prompt[done : done + size]
        wanted = len(chunk) if row.scores_prompt else int(size == left)
        self._computing = row
        start = time.perf_counter()
        try:
            logits = self._run(index, chunk[None, :], [done + size], wanted, interruptible=True)
        except Interrupted:
            if not row.over:
                # Another row's cancellation came late, and stopped this chunk instead of its own.
                self._prefilling.insert(0, row)
            return
        finally:
            self._computing = None
        self._chunks.measured(size, time.perf_counter() - start)
        slot.extend(chunk)
        row.take_prompt(done, logits[0])
        if size < left:
            self._prefilling.append(row)
            return
        row.end_prompt()
        if not row.over:
            _advance(row, logits[0, -1:])
        if not row.over:
            self._join(self._index(row))

    def _decode(self, rows: Sequence[Row]) -> None:
        """Compute the last token of every row, and choose the next."""
        slots = [self._table.slots[index] for index in self._decoding]
        draft = rows[0].draft() if len(rows) == 1 else []
        ids = np.array([[row.tokens[-1], *draft] for row in rows], dtype=np.int64)
        lengths = [len(slot) + len(ids[0]) for slot in slots]
        logits = self._run(self._decoding.start, ids, lengths, len(ids[0]))
        for slot, row, token, values in zip(slots, rows, ids[:, :1], logits, strict=True):
            slot.extend(token)
            known = len(row.tokens)
            _advance(row, values, draft)
            # Guesses that were right are computed; wrong ones are written over.
            slot.extend(ids[0, 1 : len(row.tokens) - known])

    def _run(
        self,
        first: int,
        ids: NDArray[np.integer],
        lengths: list[int],
        wanted: int,
        *,
        interruptible: bool = False,
    ) -> NDArray[np.float32]:
        assert self._session is not None, "the loop is closed"
        ids = ids.astype(np.int64)
        return self._session.run(first, ids, lengths, wanted, interruptible=interruptible)

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


def _advance(row: Row, logits: NDArray[np.float32], draft: Sequence[int] = ()) -> None:
    try:
        row.advance(logits, draft)
    except GenAIError as error:
        row.fail(error)
