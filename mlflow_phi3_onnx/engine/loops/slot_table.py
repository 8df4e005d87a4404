"""The places of a slot cache: who is where, what is remembered, and how much memory that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.engine.loops.prefill import MIN_COMPUTED
from mlflow_phi3_onnx.engine.loops.prefix import MIN_PREFIX, common_prefix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.engine.sequence.state import SequenceState
    from mlflow_phi3_onnx.runtime.ort import SlotSession

__all__ = ["Slot", "SlotTable"]


class Slot:
    """One place of the cache.

    Attributes:
        state: The sequence that is computed in it, if one is.
        reserved: How many tokens it may come to hold.
        used: When it was last used, in steps.
    """

    def __init__(self) -> None:
        self.state: SequenceState | None = None
        self.reserved = 0
        self.used = 0
        self._tokens = np.zeros(0, dtype=np.int32)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens whose keys and values it holds."""
        return self._tokens[: self._length]

    def cut(self, length: int) -> None:
        """Hold only so many tokens any more."""
        self._length = length

    def extend(self, tokens: NDArray[np.integer]) -> None:
        """Hold more tokens."""
        length = self._length + len(tokens)
        if length > len(self._tokens):
            held = self.tokens
            self._tokens = np.zeros(max(2 * length, 64), dtype=np.int32)
            self._tokens[: len(held)] = held
        self._tokens[self._length : length] = tokens
        self._length = length


class SlotTable:
    """All places of a cache.

    A slot that is free still remembers its last tokens, so that a prompt that begins like them need
    not be computed again. What it remembers counts against the memory, and is forgotten first.

    Args:
        session: The cache.
        kv_tokens: How many tokens the KV memory holds.
        reuse: Whether free slots remember.
    """

    def __init__(self, session: SlotSession, kv_tokens: int, *, reuse: bool) -> None:
        self._session = session
        self._kv_tokens = kv_tokens
        self._reuse = reuse
        self._clock = 0
        self.slots = [Slot() for _ in range(session.slots)]

    def take(self, state: SequenceState, needed: int) -> int | None:
        """Give a sequence a slot, filled with as much of its prompt as some slot holds.

        Args:
            state: The sequence.
            needed: How many tokens it may come to hold.

        Returns:
            The slot, or None where there is no room now.
        """
        free = [i for i, slot in enumerate(self.slots) if slot.state is None]
        busy = sum(slot.reserved for slot in self.slots if slot.state is not None)
        if not free or busy + needed > self._kv_tokens:
            return None
        source, prefix = self._longest_prefix(state)
        if source is not None and self.slots[source].state is None:
            index = source
        else:
            index = min(free, key=lambda i: (len(self.slots[i]), self.slots[i].used))
            if source is not None:
                self._session.copy(source, index, prefix)
        slot = self.slots[index]
        slot.state = state
        slot.cut(0)
        slot.extend(state.prompt[:prefix])
        slot.reserved = needed
        self._touch(slot)
        self._forget_until(self._kv_tokens - busy - needed)
        return index

    def leave(self, index: int) -> None:
        """Free a slot."""
        slot = self.slots[index]
        slot.state = None
        slot.reserved = 0
        self._touch(slot)
        if not self._reuse:
            slot.cut(0)

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots."""
        first, second = self.slots[one], self.slots[other]
        self._session.swap(one, other, len(first), len(second))
        self.slots[one], self.slots[other] = second, first

    def _longest_prefix(self, state: SequenceState) -> tuple[int | None, int]:
        """Find the slot that holds the most of a prompt, less what is always computed."""
        if not self._reuse or state.scores_prompt:
            return None, 0
        lengths = [common_prefix(slot.tokens, state.prompt[:-MIN_COMPUTED]) for slot in self.slots]
        # Of equal ones, a free slot: its content need not be copied.
        best = max(range(len(lengths)), key=lambda i: (lengths[i], self.slots[i].state is None))
        return (best, lengths[best]) if lengths[best] >= MIN_PREFIX else (None, 0)

    def _forget_until(self, room: int) -> None:
        """Forget the oldest that free slots remember, until the rest takes no more than room."""
        remembering = [i for i, s in enumerate(self.slots) if s.state is None and len(s)]
        remembering.sort(key=lambda i: self.slots[i].used)
        taken = sum(len(self.slots[i]) for i in remembering)
        for index in remembering:
            if taken <= room:
                return
            taken -= len(self.slots[index])
            self.slots[index].cut(0)
            self._session.release(index)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock
