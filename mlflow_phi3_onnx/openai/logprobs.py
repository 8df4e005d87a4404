"""Log-probabilities in the two forms of OpenAI's API: chat's and completions'."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from mlflow_phi3_onnx.core.request import Delta, EncodedPrompt, TokenLogprob

    Entry: TypeAlias = tuple[str, TokenLogprob | None, int]
    """A token's name, its log-probability where there is one, and where it begins."""

__all__ = ["TextLogprobs", "chat_logprobs", "entry", "text_logprobs"]


def entry(token: TokenLogprob) -> dict[str, Any]:
    """Build the entry of one token, without its alternatives."""
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Build the ``logprobs`` of a chat's choice."""
    return {"content": [{**entry(t), "top_logprobs": [entry(o) for o in t.top]} for t in tokens]}


def text_logprobs(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Build the ``logprobs`` of a completion's choice, or of a chunk of one."""
    return {
        "tokens": [name for name, _, _ in entries],
        "token_logprobs": [token and token.logprob for _, token, _ in entries],
        "top_logprobs": [token and _top(token) for _, token, _ in entries],
        "text_offset": [offset for _, _, offset in entries],
    }


class TextLogprobs:
    """Makes the entries of one completion, and counts where each token of it begins.

    Offsets are in characters, from the start of the prompt. A token that goes on with a character
    begins where the character does.

    Args:
        prompt: The completion's prompt.
        silent: The ids of tokens that are left out of the text.
        ending: Whether the token that ended the completion, which has no text and no
            log-probability, is listed too.
    """

    def __init__(self, prompt: EncodedPrompt, silent: Container[int], *, ending: bool) -> None:
        self._prompt = prompt
        self._silent = silent
        self._ending = ending
        self._at = len(prompt.text)
        self._reported = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def of_prompt(self, delta: Delta) -> list[Entry]:
        """Make the entries of a prompt that is repeated before its completion, where it is.

        The first token has no log-probability: nothing comes before it.
        """
        text, offsets = self._prompt.text, self._prompt.offsets
        first = text[: offsets[1]] if len(offsets) > 1 else text
        return [
            (first if token is None else _name(token), token, offset)
            for token, offset in zip(delta.prompt_logprobs, offsets, strict=False)
        ]

    def of_text(self, delta: Delta) -> list[Entry]:
        """Make the entries of a delta."""
        entries: list[Entry] = []
        for token in delta.logprobs:
            entries.append((_name(token), token, self._at))
            if token.token_id not in self._silent:
                self._at += len(self._utf8.decode(token.raw))
        self._reported += len(entries)
        if self._ending and delta.finish_reason and delta.tokens > self._reported:
            entries.append(("", None, self._at))
        return entries


def _top(token: TokenLogprob) -> dict[str, float]:
    """Map the most likely tokens to their log-probabilities, and the token that is there itself.

    Of two tokens with the same text the more likely one counts.
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
