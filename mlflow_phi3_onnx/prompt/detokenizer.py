"""Token ids back to text, a token at a time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Detokenizer", "token_bytes"]


class Detokenizer:
    """Turns one sequence's tokens into text, a token at a time.

    Text is held back until its characters are whole. Control tokens are left out. The first
    token keeps the space that SentencePiece vocabularies write before a word, as with
    onnxruntime-genai's own stream.

    Args:
        tokenizer: The model's tokenizer.
        anchor: The id of a one-letter token, which stands for the prompt before the answer.
        keep_control: Whether control tokens are written too.
    """

    def __init__(
        self, tokenizer: Tokenizer, anchor: list[int], *, keep_control: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._anchor = anchor
        self._skip = not keep_control
        self._stream = DecodeStream(ids=anchor, skip_special_tokens=self._skip)
        self._ids: list[int] = []
        self._emitted = 0

    def add(self, token_id: int) -> str:
        """Take the next token and return the text that has become whole, maybe none."""
        self._ids.append(token_id)
        text = self._stream.step(self._tokenizer, token_id) or ""
        self._emitted += len(text)
        return text

    def flush(self) -> str:
        """Return what was held back: the start of a character that never came whole, as U+FFFD."""
        whole = self._tokenizer.decode([*self._anchor, *self._ids], skip_special_tokens=self._skip)
        return whole[1 + self._emitted :]


def token_bytes(piece: str, text: str) -> bytes:
    """Return the bytes that a vocabulary entry stands for.

    Args:
        piece: The entry as the vocabulary writes it.
        text: The entry decoded on its own.
    """
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
        return bytes([int(match.group(1), 16)])
    if "\ufffd" in text and all(letter in _BYTE_OF for letter in piece):
        return bytes(_BYTE_OF[letter] for letter in piece)
    return text.encode()


def _byte_letters() -> dict[str, int]:
    """Map the letters that byte-level vocabularies write bytes with (GPT-2) to those bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_letters()
