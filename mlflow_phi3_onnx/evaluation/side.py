"""What is compared: a model behind one interface, whoever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Prompt", "Scores", "Side", "Text"]

Text: TypeAlias = "str | tuple[Mapping[str, Any], ...]"
"""A whole prompt, or the checked messages of a conversation."""

Prompt: TypeAlias = "Text | list[int]"
"""A text, or token ids."""


@dataclass(frozen=True)
class Scores:
    """What a model expects at each token of a prompt but the first.

    Attributes:
        logprobs: The natural logarithm of the token's probability after those before it.
        likeliest: The id of the likeliest token there.
    """

    logprobs: Sequence[float]
    likeliest: Sequence[int]


class Side(Protocol):
    """One of the two models."""

    @property
    def label(self) -> str:
        """What it is, in a few words; with its URI, if it came by one, but with no local path."""
        ...

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together; None where the model does not say."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many token ids it knows."""
        ...

    def encode(self, prompt: Text) -> list[int]:
        """Turn a prompt into token ids, with the control tokens that are written in it only.

        Raises:
            InvalidRequestError: If the tokenizer or the chat template refuses it.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included."""
        ...

    def greedy(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue a prompt with the likeliest tokens, the one that ends the answer included."""
        ...

    def score(self, ids: Sequence[int]) -> Scores:
        """Tell how likely each token of a prompt of at least two is."""
        ...
