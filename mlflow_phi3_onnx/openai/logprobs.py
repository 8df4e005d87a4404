"""Log-probabilities in the two forms of OpenAI's API: chat's and completions'."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from mlflow_phi3_onnx.core.request import EncodedPrompt, TokenLogprob

__all__ = ["OffsetCounter", "chat_logprobs", "entry", "prompt_logprobs", "text_logprobs"]


class OffsetCounter:
    """Counts where each token of an answer begins, in characters from the start of the prompt.

    A token that goes on with a character begins where the character does.

    Args:
        start: Where the answer begins.
        silent: The ids of tokens that are left out of the text.

    Attributes:
        at: Where the next token begins.
    """

    def __init__(self, start: int, silent: Container[int]) -> None:
        self.at = start
        self._silent = silent
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: TokenLogprob) -> int:
        """Take the next token, and return where it begins."""
        at = self.at
        if token.token_id not in self._silent:
            self.at += len(self._utf8.decode(token.raw))
        return at


def entry(token: TokenLogprob) -> dict[str, Any]:
    """Build the entry of one token, without its alternatives."""
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Build the ``logprobs`` of a chat's choice."""
    return {"content": [{**entry(t), "top_logprobs": [entry(o) for o in t.top]} for t in tokens]}


def text_logprobs(
    tokens: Sequence[TokenLogprob], offsets: OffsetCounter, *, ending: bool = False
) -> dict[str, list[Any]]:
    """Build the ``logprobs`` of a completion's choice, or of the next piece of one.

    Args:
        tokens: The tokens.
        offsets: Counts where they begin.
        ending: Whether the token that ended the answer follows, which has no text.
    """
    entries: dict[str, list[Any]] = {
        "tokens": [_name(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": [offsets.add(token) for token in tokens],
    }
    if ending:
        last = {"tokens": "", "token_logprobs": None, "top_logprobs": None}
        for name, value in {**last, "text_offset": offsets.at}.items():
            entries[name].append(value)
    return entries


def prompt_logprobs(
    tokens: Sequence[TokenLogprob | None], prompt: EncodedPrompt
) -> dict[str, list[Any]]:
    """Build the ``logprobs`` of a prompt that is repeated before its answer.

    The first token's are null: nothing comes before it.
    """
    end = prompt.offsets[1] if len(prompt.offsets) > 1 else len(prompt.text)
    return {
        "tokens": [prompt.text[:end] if token is None else _name(token) for token in tokens],
        "token_logprobs": [None if token is None else token.logprob for token in tokens],
        "top_logprobs": [None if token is None else _top(token) for token in tokens],
        "text_offset": list(prompt.offsets),
    }


def _top(token: TokenLogprob) -> dict[str, float]:
    """Map the likeliest tokens to their log-probabilities, and the token that is there itself.

    Of two tokens with the same text the likelier one counts.
    """
    top: dict[str, float] = {}
    for other in (*token.top, token):
        top.setdefault(_name(other), other.logprob)
    return top


def _name(token: TokenLogprob) -> str:
    """Return a token's text; of a part of a character its bytes, as OpenAI's API writes them."""
    try:
        token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
    return token.text
