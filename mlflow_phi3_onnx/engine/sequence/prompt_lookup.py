"""Draft tokens for speculative decoding, looked up in the prompt and the completion so far.

Completions often repeat what came before: quotations, code, JSON. Where the last tokens have
occurred already, what followed them then is a draft of what follows now, and verifying several
draft tokens together costs little more than computing one (prompt lookup decoding,
https://github.com/apoorvumang/prompt-lookup-decoding; Leviathan et al.,
https://arxiv.org/abs/2211.17192, for why the completion stays the same).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Drafter"]

_SIZES = (3, 2)
"""How many of the last tokens must have occurred before, the longer run first."""


class Drafter:
    """Drafts for one sequence.

    The number of draft tokens rises while they are accepted and falls when they are not, so that a
    completion that repeats nothing costs next to nothing.

    Args:
        sources: Sequences of token ids in which to look, the last one being the prompt that the
            completion follows.
        most: The most tokens to draft.
    """

    def __init__(self, sources: Iterable[Sequence[int]], most: int) -> None:
        self._most = most
        self._length = most
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for source in sources:
            self._start = len(self._tokens)
            self.extend(source)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take tokens that follow."""
        for token in tokens:
            # A run of tokens is known only once something has followed it.
            for size in _SIZES:
                if len(self._tokens) - self._start >= size:
                    self._after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Draft the next tokens, at most so many, maybe none."""
        most = min(most, self._length)
        if most <= 0:
            return []
        for size in _SIZES:
            place = self._after.get(tuple(self._tokens[-size:]))
            if place is not None and len(self._tokens) - self._start >= size:
                return self._tokens[place : place + most]
        return []

    def adapt(self, drafted: int, accepted: int) -> None:
        """Draft more after a draft that was accepted, and less after one that was not."""
        # As transformers' own schedule for assisted generation does.
        length = self._length + 2 if accepted == drafted else self._length - 1
        self._length = min(max(length, 1), self._most)
