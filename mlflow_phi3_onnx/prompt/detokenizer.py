"""Token ids back to text, a token at a time."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.prompt.native import NativeStream, NativeTokenizer

__all__ = ["Detokenizer", "byte_tokens", "token_bytes"]


class Detokenizer:
    """Turns one sequence's tokens into text, a token at a time.

    Text is held back until its characters are whole; bytes that never become one are written as
    U+FFFD. Control tokens are left out. SentencePiece vocabularies write a space before each word:
    the first token keeps it, as with onnxruntime-genai's own stream, unless it begins a text.

    Byte tokens are decoded here: the library decodes a run of them as a whole, and fails where
    a whole character is followed by a broken one.

    Args:
        tokenizer: The model's tokenizer.
        anchor: The id of a one-letter token, which stands for what comes before the sequence.
        bytes_of: The byte of each byte token, by id.
        keep_control: Whether control tokens are written too.
        dropped: Tokens that are left out all the same.
        own_text: Whether the sequence is a text of its own, which nothing comes before.
    """

    def __init__(
        self,
        tokenizer: NativeTokenizer,
        anchor: list[int],
        bytes_of: Mapping[int, bytes],
        *,
        keep_control: bool = False,
        dropped: frozenset[int] = frozenset(),
        own_text: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._anchor = anchor
        self._bytes_of = bytes_of
        self._keep_control = keep_control
        self._dropped = dropped
        self._own_text = own_text
        self._stream: NativeStream | None = None
        self._pending: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """Take the next token and return the text that has become whole, maybe none."""
        if token_id in self._dropped:
            return ""
        stream = self._stream or self._begin(token_id)
        byte = self._bytes_of.get(token_id)
        if byte is not None:
            return self._utf8.decode(byte)
        broken = self._utf8.decode(b"", final=True)
        text = stream.step(token_id)
        if text is None:
            self._pending.append(token_id)
            return broken
        self._pending.clear()
        return broken + text

    def flush(self) -> str:
        """Return what was held back: the start of a character that never came whole, as U+FFFD."""
        held = self._tokenizer.decode(
            [*self._anchor, *self._pending], keep_control=self._keep_control
        )[len(self._anchor) :]
        self._pending.clear()
        return held + self._utf8.decode(b"", final=True)

    def _begin(self, first: int) -> NativeStream:
        # A text that begins with a byte has no word there whose space is the vocabulary's own.
        if self._own_text and first not in self._bytes_of:
            self._anchor = []
        self._stream = self._tokenizer.stream(self._anchor, keep_control=self._keep_control)
        return self._stream


def byte_tokens(tokenizer: NativeTokenizer) -> dict[int, bytes]:
    """Return the byte of each token that stands for one (``<0x00>`` to ``<0xFF>``), by id."""
    pieces = ((i, tokenizer.vocabulary.get(f"<0x{i:02X}>")) for i in range(256))
    return {token: bytes([i]) for i, token in pieces if token is not None}


def token_bytes(piece: str, text: str) -> bytes:
    """Return the bytes that a vocabulary entry stands for, one that is no byte token.

    Args:
        piece: The entry as the vocabulary writes it.
        text: The entry decoded on its own.
    """
    if "\ufffd" in text and all(letter in _BYTE_OF for letter in piece):
        return bytes(_BYTE_OF[letter] for letter in piece)
    return text.encode()


def _byte_letters() -> dict[str, int]:
    """Map the letters that byte-level vocabularies write bytes with (GPT-2) to those bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_letters()
