"""Continuous batching on plain ONNX Runtime, for decoder graphs on CPU.

A sequence takes a slot of the cache, its prompt is computed there in chunks, and then it joins
those that are decoded together. It leaves when it is finished. Joining and leaving happen between
any two steps; while sequences are decoded, chunks of prompts take turns with them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.engine.loops.base import Failing, Loop
from mlflow_phi3_onnx.engine.loops.prefill import (
    MIN_COMPUTED,
    MIN_PREFIX,
    ChunkSize,
    common_prefix,
)
from mlflow_phi3_onnx.runtime.ort import Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.engine.sequence.state import SequenceState
    from mlflow_phi3_onnx.runtime.ort import SlotSession

__all__ = ["SlotsLoop"]


class Slot:
    """One place of the cache, with room for so many tokens.

    Attributes:
        state: The sequence that is computed in it, if one is.
        used: When it was last used: a higher number is later.
    """

    def __init__(self, capacity: int) -> None:
        self.state: SequenceState | None = None
        self.used = 0
        # The system provides the memory as it is written.
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens whose keys and values it holds."""
        return self._tokens[: self._length]

    def forget(self) -> None:
        """Hold no tokens any more."""
        self._length = 0

    def extend(self, tokens: NDArray[np.integer]) -> None:
        """Hold more tokens."""
        start, self._length = self._length, self._length + len(tokens)
        self._tokens[start : self._length] = tokens


class SlotTable:
    """All places of a cache: who is where, what is remembered, and how much memory that takes.

    A slot that is free still remembers its last tokens, so that a prompt that begins like them need
    not be computed again. What it remembers counts against the memory, and is forgotten first.
    """

    def __init__(self, session: SlotSession, kv_tokens: int, *, reuse: bool) -> None:
        self._session = session
        self._kv_tokens = kv_tokens
        self._reuse = reuse
        self._clock = 0
        self.slots = [Slot(session.capacity) for _ in range(session.slots)]

    def take(self, state: SequenceState) -> int | None:
        """Give a sequence a slot, filled with as much of its prompt as some slot holds.

        Returns:
            The slot, or None where there is no room now.
        """
        free = [i for i, slot in enumerate(self.slots) if slot.state is None]
        reserved = sum(slot.state.most_tokens for slot in self.slots if slot.state is not None)
        room = self._kv_tokens - reserved - state.most_tokens
        if not free or room < 0:
            return None
        source, prefix = self._longest_prefix(state)
        if source in free:
            index = source
        else:
            index = min(free, key=lambda i: (len(self.slots[i]), self.slots[i].used))
            if prefix:
                self._session.copy(source, index, prefix)
        slot = self.slots[index]
        slot.state = state
        slot.forget()
        slot.extend(state.prompt[:prefix])
        self._forget_until(room)
        return index

    def leave(self, index: int) -> None:
        """Free a slot."""
        slot = self.slots[index]
        slot.state = None
        self._clock += 1
        slot.used = self._clock
        if not self._reuse:
            slot.forget()

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots."""
        if one == other:
            return
        first, second = self.slots[one], self.slots[other]
        self._session.swap(one, other, len(first), len(second))
        self.slots[one], self.slots[other] = second, first

    def _longest_prefix(self, state: SequenceState) -> tuple[int, int]:
        """Find the slot that holds the most of a prompt, less what is always computed."""
        if not self._reuse or state.options.prompt_logprobs:
            return -1, 0
        lengths = [common_prefix(slot.tokens, state.prompt[:-MIN_COMPUTED]) for slot in self.slots]
        # Of equal ones, a free slot: its content need not be copied.
        best = max(range(len(lengths)), key=lambda i: (lengths[i], self.slots[i].state is None))
        return (best, lengths[best]) if lengths[best] >= MIN_PREFIX else (-1, 0)

    def _forget_until(self, room: int) -> None:
        """Forget the oldest that free slots remember, until the rest takes no more than room."""
        remembering = [i for i, s in enumerate(self.slots) if s.state is None and len(s)]
        remembering.sort(key=lambda i: self.slots[i].used)
        taken = sum(len(self.slots[i]) for i in remembering)
        for index in remembering:
            if taken <= room:
                return
            taken -= len(self.slots[index])
            self.slots[index].forget()
            self._session.release(index)


class SlotsLoop(Loop):
    """Runs a decoder graph over a cache of slots.

    Args:
        session: The graph and its cache.
        kv_tokens: How many tokens the KV memory holds.
        reuse_prefixes: Whether free slots remember what they held.
    """

    name = "slots"

    def __init__(self, session: SlotSession, *, kv_tokens: int, reuse_prefixes: bool) -> None:
        self._session = session
        self._table = SlotTable(session, kv_tokens, reuse=reuse_prefixes)
        self._prefilling: list[SequenceState] = []
        self._decoding = range(0)
        self._computing: SequenceState | None = None
        self._chunks = ChunkSize()

    @property
    def busy(self) -> bool:
        """Whether a sequence has a slot."""
        return bool(self._prefilling) or len(self._decoding) > 0

    def admit(self, waiting: Sequence[SequenceState]) -> set[SequenceState]:
        """Give slots to the waiting sequences, in order, as far as there is room."""
        taken: set[SequenceState] = set()
        for state in waiting:
            index = self._table.take(state)
            if index is None:
                break
            state.cached_tokens = len(self._table.slots[index])
            self._prefilling.append(state)
            taken.add(state)
        return taken

    def step(self) -> None:
        """Compute a chunk of one prompt, and one token of every sequence that is decoded."""
        self._remove_finished()
        if self._prefilling:
            state = self._prefilling.pop(0)
            with Failing([state]):
                self._prefill(state)
            self._remove_finished()
        if self._decoding:
            slots = [self._table.slots[index] for index in self._decoding]
            decoded = [(slot, slot.state) for slot in slots if slot.state is not None]
            with Failing([state for _, state in decoded]):
                self._decode(decoded)
        self._remove_finished()

    def interrupt(self, state: SequenceState) -> None:
        """Stop a chunk of a sequence's prompt while it is computed."""
        if self._computing is state:
            self._session.interrupt()

    def close(self) -> None:
        """Free the model."""
        self._prefilling = []
        self._decoding = range(0)
        del self._session, self._table

    def _prefill(self, state: SequenceState) -> None:
        """Compute the next chunk of a prompt; after the last one, the sequence is decoded."""
        index = next(i for i, slot in enumerate(self._table.slots) if slot.state is state)
        slot = self._table.slots[index]
        done = len(slot)
        left = len(state.prompt) - done
        size = self._chunks.next(left, alone=not (self._prefilling or self._decoding))
        chunk = state.prompt[done : done + size].astype(np.int64)
        wanted = len(chunk) if state.options.prompt_logprobs else int(size == left)
        self._computing = state
        start = time.perf_counter()
        try:
            logits = self._session.run(
                index, chunk[None, :], [done + size], wanted, interruptible=True
            )
        except Interrupted:
            if not state.finished:
                # Another's cancellation came late, and stopped this chunk instead of its own.
                self._prefilling.insert(0, state)
            return
        finally:
            self._computing = None
        self._chunks.measured(size, time.perf_counter() - start)
        slot.extend(chunk)
        state.take_prompt(done, logits[0])
        if size < left:
            self._prefilling.append(state)
            return
        state.end_prompt()
        if not state.finished:
            state.advance(logits[0, -1:])
        if not state.finished:
            self._join(index)

    def _decode(self, decoded: Sequence[tuple[Slot, SequenceState]]) -> None:
        """Compute the last token of every sequence, and choose the next."""
        draft = decoded[0][1].draft() if len(decoded) == 1 else []
        ids = np.array([[state.tokens[-1], *draft] for _, state in decoded], dtype=np.int64)
        width = 1 + len(draft)
        lengths = [len(slot) + width for slot, _ in decoded]
        logits = self._session.run(self._decoding.start, ids, lengths, width)
        for (slot, state), computed, values in zip(decoded, ids, logits, strict=True):
            known = len(state.tokens)
            state.advance(values, draft)
            # Accepted draft tokens are computed; wrong ones are written over.
            slot.extend(computed[: len(state.tokens) - known])

    def _join(self, index: int) -> None:
        """Put a slot beside those that are decoded, for a batch is a range of neighbours."""
        span = self._decoding
        if not span:
            self._decoding = range(index, index + 1)
            return
        target = span.stop if span.stop < len(self._table.slots) else span.start - 1
        if index in (span.start - 1, span.stop):
            target = index
        self._table.swap(index, target)
        self._decoding = range(min(span.start, target), max(span.stop, target + 1))

    def _remove_finished(self) -> None:
        self._prefilling = [state for state in self._prefilling if not state.finished]
        slots = enumerate(self._table.slots)
        finished = [i for i, slot in slots if slot.state is not None and slot.state.finished]
        # From the last one on: leaving may exchange a slot with one behind it.
        for index in reversed(finished):
            self._leave(index)

    def _leave(self, index: int) -> None:
        span = self._decoding
        self._table.leave(index)
        if index == span.start:
            self._decoding = span[1:]
        elif index in span:
            self._table.swap(index, span[-1])
            self._decoding = span[:-1]
