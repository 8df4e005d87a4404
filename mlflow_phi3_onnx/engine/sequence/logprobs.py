"""Log-probabilities of tokens, read from raw logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.engine.base import TokenScore
from mlflow_phi3_onnx.engine.sequence.sampler import log_of_sum, top_k_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["read_scores"]


def read_scores(logits: NDArray[np.float32], top: int) -> Callable[[int], TokenScore]:
    """Read one position, and return what reports the token that is there.

    Args:
        logits: The raw logits, ``(vocabulary,)``; they may be changed afterwards.
        top: How many alternatives to report.
    """
    raw = logits.copy()
    total = log_of_sum(raw)
    ids = top_k_ids(raw, top).tolist() if top else []
    others = tuple((token, float(raw[token]) - total) for token in ids)
    return lambda token: TokenScore(token, float(raw[token]) - total, others)
