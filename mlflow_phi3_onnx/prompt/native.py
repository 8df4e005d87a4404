"""The only door to ``tokenizers``: its files bounded, its failures errors of this package."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from mlflow_phi3_onnx.core.bounds import (
    MAX_TOKENIZER_BYTES,
    MAX_TOKENIZER_VALUES,
    MAX_UNUSED_IDS,
)
from mlflow_phi3_onnx.core.files import parse_json_object, read_text
from mlflow_phi3_onnx.core.native import NativeErrors
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.prompt.spec import TOKENIZER_FILE, check_spec, longest_token

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["NativeTokenizer"]

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

    Attributes:
        longest_token: The most characters other than spaces that one token can stand for; None
            where no bound is known.

    Raises:
        InvalidModelError: If the library cannot use it.
    """

    longest_token: int | None = None

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
        text = read_text(folder / TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
        spec = parse_json_object(text, TOKENIZER_FILE, values=MAX_TOKENIZER_VALUES)
        check_spec(spec)
        made = cls(text)
        made.longest_token = longest_token(spec, made.vocabulary)
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
