"""The places of a slot cache: who is where, what is remembered, and how much memory that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.generation.row import Row
    from mlflow_phi3_onnx.slot_runtime import SlotSession

__all__ = ["MIN_COMPUTED", "Slot", "SlotTable"]

MIN_PREFIX = 8
"""The fewest tokens that are worth finding again."""

MIN_COMPUTED = 2
"""The fewest tokens of a prompt that are computed at once.

ONNX Runtime computes a single token with another kernel, whose logits differ in the last bits: a
sampled answer would not always be the same with and without the cache.
"""


class Slot:
    """One place of the cache.

    Attributes:
        row: The row that is computed in it, if one is.
        tokens: The tokens whose keys and values it holds.
        reserved: How many tokens it may come to hold.
        used: When it was last used, in steps.
    """

    def __init__(self) -> None:
        self.row: Row | None = None
        self.tokens: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.reserved = 0
        self.used = 0


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

    def take(self, row: Row, needed: int) -> int | None:
        """Give a row a slot, filled with as much of its prompt as some slot holds.

        Args:
            row: The row.
            needed: How many tokens it may come to hold.

        Returns:
            The slot, or None where there is no room now.
        """
        free = [i for i, slot in enumerate(self.slots) if slot.row is None]
        busy = sum(slot.reserved for slot in self.slots if slot.row is not None)
        if not free or busy + needed > self._kv_tokens:
            return None
        source, prefix = self._longest_prefix(row.prompt)
        if source is not None and self.slots[source].row is None:
            index = source
        else:
            index = min(free, key=lambda i: (len(self.slots[i].tokens), self.slots[i].used))
            if source is not None:
                self._session.copy(source, index, prefix)
        slot = self.slots[index]
        slot.row = row
        slot.tokens = row.prompt[:prefix]
        slot.reserved = needed
        self._touch(slot)
        self._forget_until(self._kv_tokens - busy - needed)
        return index

    def leave(self, index: int) -> None:
        """Free a slot."""
        slot = self.slots[index]
        slot.row = None
        slot.reserved = 0
        self._touch(slot)
        if not self._reuse:
            slot.tokens = slot.tokens[:0]

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots."""
        first, second = self.slots[one], self.slots[other]
        self._session.swap(one, other, len(first.tokens), len(second.tokens))
        self.slots[one], self.slots[other] = second, first

    def _longest_prefix(self, prompt: NDArray[np.int32]) -> tuple[int | None, int]:
        """Find the slot that holds the most of a prompt, less what is always computed."""
        if not self._reuse:
            return None, 0
        lengths = [_common(slot.tokens, prompt[:-MIN_COMPUTED]) for slot in self.slots]
        # Of equal ones, a free slot: its content need not be copied.
        best = max(range(len(lengths)), key=lambda i: (lengths[i], self.slots[i].row is None))
        return (best, lengths[best]) if lengths[best] >= MIN_PREFIX else (None, 0)

    def _forget_until(self, room: int) -> None:
        """Forget the oldest that free slots remember, until the rest takes no more than room."""
        remembering = [i for i, s in enumerate(self.slots) if s.row is None and len(s.tokens)]
        remembering.sort(key=lambda i: self.slots[i].used)
        taken = sum(len(self.slots[i].tokens) for i in remembering)
        for index in remembering:
            if taken <= room:
                return
            taken -= len(self.slots[index].tokens)
            self.slots[index].tokens = self.slots[index].tokens[:0]
            self._session.release(index)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock


def _common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Count the tokens that two sequences begin with alike."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if different.size else size
