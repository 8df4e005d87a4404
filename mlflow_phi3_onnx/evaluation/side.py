"""What is compared: a model behind one interface, whoever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Prompt", "Side", "Text"]

Text: TypeAlias = "str | tuple[Mapping[str, Any], ...]"
"""A whole prompt, or the checked messages of a conversation."""

Prompt: TypeAlias = "Text | list[int]"
"""A text, or token ids."""


class Side(Protocol):
    """One of the two models.

    Attributes:
        label: What it is, in a few words; with its URI, if it came by one, but with no local path.
        context_length: Tokens of prompt and completion together; None where the model does not say.
        vocab_size: How many token ids it knows.
    """

    label: str
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
