"""Prompts of an exact length in tokens, never the same twice."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Prompts"]


class Prompts:
    """Writes prompts for one model.

    They are words that are one token each, drawn at random, so that no two prompts begin alike and
    nothing that is kept of one serves another.

    Args:
        folder: The model's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        pieces = [piece for piece in content["model"]["vocab"] if piece[0] == "▁"]
        words = [piece[1:] for piece in pieces if len(piece) > 3 and piece[1:].isalpha()]
        self._words = [word for word in words if self.count(word) == 1]

    def count(self, text: str) -> int:
        """Count the tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def text(self, tokens: int, *seed: object) -> str:
        """Write a prompt.

        Args:
            tokens: How many tokens it has.
            seed: What it is for; the same gives the same prompt again.
        """
        words = random.Random(repr(seed)).choices(self._words, k=tokens)
        text = " ".join(words)
        if self.count(text) != tokens:
            raise ValueError("The words of this vocabulary join to other tokens.")
        return text
