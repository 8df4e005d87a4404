"""What native libraries raise, made an error of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["NativeErrors"]

_PANICS = "pyo3_runtime"
"""The module that panics of Rust say they are from. They are no ``Exception``."""


class NativeErrors:
    """A context that turns what a native library raises into another error.

    A class, because a generator would cost more than many a call that it is put round.

    Args:
        make: Makes the error from what was raised.
    """

    def __init__(self, make: Callable[[BaseException], Exception]) -> None:
        self._make = make

    def __enter__(self) -> None:
        """Enter."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Raise the other error."""
        if error is None or kind is None:
            return
        if isinstance(error, Exception) or kind.__module__ == _PANICS:
            raise self._make(error) from error
