"""The only door to ``tokenizers``: its files bounded, its failures errors of this package."""

from __future__ import annotations

import base64
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from mlflow_phi3_onnx.core.bounds import (
    MAX_ADDED_TOKENS,
    MAX_JSON_BYTES,
    MAX_TEXT_GROWTH,
    MAX_TOKEN_CHARACTERS,
    MAX_UNUSED_IDS,
    MAX_WORD_CHARACTERS,
)
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.files import parse_json_object, read_text
from mlflow_phi3_onnx.core.native import NativeErrors
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["TOKENIZER_FILE", "NativeTokenizer"]

TOKENIZER_FILE = "tokenizer.json"

_LONG = 20_000
"""From so many characters on, a text is encoded without the interpreter's lock.

Shorter ones take some milliseconds. Once a batch has been encoded, the library warns in forks.
"""

_SHOWN = 200


def _not_read(error: BaseException) -> InvalidModelError:
    return InvalidModelError(
        f"{TOKENIZER_FILE} is damaged or of a kind that the tokenizers library does not read:"
        f" {str(error)[:_SHOWN]}"
    )


def _not_decoded(error: BaseException) -> InvalidModelError:
    return InvalidModelError(
        f"{TOKENIZER_FILE}: the tokenizer fails where it decodes what the model has written"
        f" ({type(error).__name__})."
    )


class NativeTokenizer:
    """A tokenizer of the ``tokenizers`` library.

    Args:
        spec: What ``tokenizer.json`` holds.

    Raises:
        InvalidModelError: If the library cannot use it.
    """

    def __init__(self, spec: str) -> None:
        with NativeErrors(_not_read):
            self._inner = Tokenizer.from_str(spec)
            self._inner.no_truncation()
            self._inner.no_padding()
            self._inner.encode("a", add_special_tokens=False)

    @classmethod
    def read(cls, folder: Path) -> NativeTokenizer:
        """Read a model folder's ``tokenizer.json``.

        Raises:
            InvalidModelError: If it is missing, out of bounds, or the library cannot use it.
        """
        text = read_text(folder / TOKENIZER_FILE, MAX_JSON_BYTES)
        spec = parse_json_object(text.encode("utf-8", "surrogatepass"), TOKENIZER_FILE)
        _check_spec(spec)
        made = cls(text)
        highest, count = max(made.vocabulary.values(), default=0), len(made.vocabulary)
        if highest >= count + MAX_UNUSED_IDS:
            raise InvalidModelError(
                f"{TOKENIZER_FILE} has the token id {highest:,}, and only {count:,} tokens."
            )
        return made

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each token, added ones included."""
        return self._inner.get_vocab(with_added_tokens=True)

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """The added tokens, by id."""
        return self._inner.get_added_tokens_decoder()

    @property
    def spec(self) -> str:
        """What its ``tokenizer.json`` would hold."""
        with NativeErrors(_not_read):
            return self._inner.to_str()

    def encode(self, text: str, param: str) -> list[int]:
        """Return a text's token ids, with none added.

        ``Tokenizer.encode`` holds the interpreter's lock, for seconds with megabytes of text.

        Args:
            text: The text.
            param: The field that it came in, for messages.

        Raises:
            InvalidRequestError: If the tokenizer fails at it.
        """
        with NativeErrors(lambda _: _not_encoded(param)):
            if len(text) < _LONG:
                return self._inner.encode(text, add_special_tokens=False).ids
            return self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def offsets(self, text: str, param: str) -> tuple[int, ...]:
        """Return where each token begins in a text, in characters; as :meth:`encode` otherwise."""
        with NativeErrors(lambda _: _not_encoded(param)):
            (encoding,) = self._inner.encode_batch([text], add_special_tokens=False)
            return tuple(start for start, _ in encoding.offsets)

    def token(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it; empty where there is none."""
        return self._inner.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int], *, keep_control: bool) -> str:
        """Return the text of token ids.

        Raises:
            InvalidModelError: If the tokenizer fails at it.
        """
        with NativeErrors(_not_decoded):
            return self._inner.decode(ids, skip_special_tokens=not keep_control)

    def stream(self, ids: list[int], *, keep_control: bool) -> NativeStream:
        """Make a decoder that goes on after some ids, a token at a time."""
        return NativeStream(self._inner, ids, keep_control=keep_control)


class NativeStream:
    """Decodes one sequence, a token at a time."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int], *, keep_control: bool) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=ids, skip_special_tokens=not keep_control)

    def step(self, token_id: int) -> str | None:
        """Take the next token and return its text, or None where it is not whole.

        Raises:
            InvalidModelError: If the tokenizer fails at it.
        """
        with NativeErrors(_not_decoded):
            return self._stream.step(self._tokenizer, token_id)


def _not_encoded(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param} has text that the model's tokenizer fails at. Change the text, or mend"
        f" {TOKENIZER_FILE}.",
        param=param,
    )


def _check_spec(spec: Mapping[str, Any]) -> None:
    """Refuse what would take time or memory beyond the file's own size."""
    added = spec.get("added_tokens")
    added = added if isinstance(added, list) else []
    if len(added) > MAX_ADDED_TOKENS:
        raise InvalidModelError(
            f"{TOKENIZER_FILE} has {len(added):,} added tokens; up to {MAX_ADDED_TOKENS:,} are"
            " read, because every text is searched for them."
        )
    contents = [t.get("content") for t in added if isinstance(t, dict)]
    if any(isinstance(c, str) and len(c) > MAX_TOKEN_CHARACTERS for c in contents):
        raise InvalidModelError(
            f"{TOKENIZER_FILE} has an added token of more than {MAX_TOKEN_CHARACTERS:,} characters."
        )
    model = spec.get("model")
    longest = model.get("max_input_chars_per_word", 0) if isinstance(model, dict) else 0
    if isinstance(longest, int) and longest > MAX_WORD_CHARACTERS:
        raise InvalidModelError(
            f"{TOKENIZER_FILE}: model.max_input_chars_per_word is {describe_kind(longest)}; up to"
            f" {MAX_WORD_CHARACTERS:,} is taken."
        )
    for part in ("normalizer", "decoder"):
        if _growth(spec.get(part)) > MAX_TEXT_GROWTH:
            raise InvalidModelError(
                f"{TOKENIZER_FILE}: {part} makes more than {MAX_TEXT_GROWTH} characters of one, so"
                " a short text could take all memory."
            )


def _growth(part: Any) -> float:
    """Count how many characters a normalizer or decoder makes of one, at most.

    Unicode's own forms make up to 18 of one, and are not counted: nobody can choose them.
    """
    match part:
        case {"type": "Sequence", "normalizers": list(parts)}:
            return math.prod(map(_growth, parts))
        case {"type": "Sequence", "decoders": list(parts)}:
            return math.prod(map(_growth, parts))
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return max(1, len(content) / len(pattern)) if pattern else 1 + len(content)
        case {"type": "Replace", "content": str(content)}:
            return 1 + len(content)  # an expression can match nothing, before every character
        case {"type": "Prepend", "prepend": str(content)}:
            return max(1, len(content))
        case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
            return _longest_entry(table)
        case _:
            return 1


def _longest_entry(table: str) -> int:
    """Count the characters of the longest text in a table of SentencePiece's.

    It is the size of a trie in four bytes, the trie, and texts that end with a zero.
    """
    try:
        data = base64.b64decode(table, validate=True)
    except ValueError:
        return 1  # the library refuses it
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=1)
