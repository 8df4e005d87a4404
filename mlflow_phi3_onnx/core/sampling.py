"""What sampling's numbers may be, whoever gives them: a request, or a model as its own defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import boolean, integer, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.checks import Check

__all__ = ["SAMPLING"]

SAMPLING: Mapping[str, Check[Any]] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(-1),
    "min_p": number(0, 1),
    "do_sample": boolean,
    "repetition_penalty": number(0, 10, above=True),
    "no_repeat_ngram_size": integer(0),
    "max_length": integer(1),
}
