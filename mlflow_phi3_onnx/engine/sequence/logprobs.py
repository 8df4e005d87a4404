"""Log-probabilities of tokens, as requests ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.request import TokenLogprob
from mlflow_phi3_onnx.engine.sequence.sampler import likeliest, log_of_sum

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["LogprobReader"]


class LogprobReader:
    """Reads log-probabilities from raw logits.

    Args:
        tokenizer: The model's tokenizer.
        top: How many alternatives to report for each token.
    """

    def __init__(self, tokenizer: PromptTokenizer, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top

    def at(self, logits: NDArray[np.float32]) -> Callable[[int], TokenLogprob]:
        """Read one position, and return what reports the token that is there.

        Args:
            logits: The raw logits, ``(vocabulary,)``; they may be changed afterwards.
        """
        raw = logits.copy()
        total = log_of_sum(raw)
        ids = likeliest(raw, self._top).tolist() if self._top else []
        others = tuple(self._entry(token, float(raw[token]) - total) for token in ids)
        return lambda token: self._entry(token, float(raw[token]) - total, others)

    def _entry(
        self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        text, raw = self._tokenizer.token_text(token)
        return TokenLogprob(token, text, raw, logprob, top)
