"""What is compared: a model behind one interface, whoever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Place", "Prompt", "Side", "Text"]

Text: TypeAlias = "str | tuple[Mapping[str, Any], ...]"
"""A whole prompt, or the checked messages of a conversation."""

Prompt: TypeAlias = "Text | list[int]"
"""A text, or token ids."""


@dataclass(frozen=True)
class Place:
    """Where a model came from.

    Attributes:
        name: Its URI, or its folder's own name; None if it was given loaded.
        model_id: The logged model that it is, if it is one.
    """

    name: str | None = None
    model_id: str | None = None


class Side(Protocol):
    """One of the two models.

    Attributes:
        label: What it is, in a few words, what tells it from other forms of the same model, and the
            name of its place.
        place: Where it came from.
        context_length: Tokens of prompt and completion together; None where the model does not say.
        vocab_size: How many token ids it knows.
    """

    label: str
    place: Place
    context_length: int | None
    vocab_size: int

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
        """Continue a prompt greedily; a token that ends the completion is part of it."""
        ...

    def score(self, ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """Score each token but the first of a prompt of at least two.

        Returns:
            The natural logarithms of the tokens' probabilities after those before them; and the ids
            of the most likely tokens there.
        """
        ...
