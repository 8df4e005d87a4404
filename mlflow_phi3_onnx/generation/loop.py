"""What every generate loop offers to the engine above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.generation.row import Row

__all__ = ["Batch", "Loop"]


class Batch(Protocol):
    """Rows that are computed together."""

    rows: Sequence[Row]

    def step(self) -> None:
        """Compute one more token for every row that is not over."""
        ...


class Loop(Protocol):
    """A way to run a model."""

    max_batch_size: int
    """The most rows of one batch."""

    def open(self, rows: Sequence[Row]) -> Batch:
        """Start computing rows together."""
        ...

    def kv_tokens(self, rows: Sequence[Row]) -> int:
        """Count the tokens that a batch of these rows takes in the KV cache at most."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
