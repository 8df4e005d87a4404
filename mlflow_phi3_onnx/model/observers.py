"""Who watches requests: each observer learns how every request begins, goes on and ends.

An observer that fails does not fail the request. What it is told is told on the caller's side, in
the context (``contextvars``) in which the request is run.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mlflow_phi3_onnx.model.planned import Asked, Outcome, PlannedRequest
from mlflow_phi3_onnx.model.watch import LOG

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_phi3_onnx.errors import GenAIError

__all__ = ["HERE", "Observed", "Observer", "Watcher", "observe", "stop_observing", "tell_refusal"]

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Watches one request.

    Attributes:
        thorough: Whether it is told the chunks of a stream, and at its end the whole response. It
            may then take long to be told of the end, which is never done in an event loop.
    """

    thorough: bool

    def wrote(self, chunk: Any) -> None:
        """Learn of a chunk of a stream."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """Learn how the request ended; nothing follows."""
        ...


class Observer(Protocol):
    """Watches requests."""

    def refused(self, asked: Asked, error: GenAIError) -> None:
        """Learn that a request is not run."""
        ...

    def began(self, planned: PlannedRequest) -> Watcher | None:
        """Learn that a request is about to be run; return what watches it, if that is wanted."""
        ...


_everywhere: tuple[Observer, ...] = (LOG,)

HERE: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
"""Those that watch what is asked in a context, beside those that watch everything."""


def observe(observer: Observer) -> None:
    """Watch all requests of this process from now on."""
    global _everywhere
    _everywhere = (*_everywhere, observer)


def stop_observing(observer: Observer) -> None:
    """End what :func:`observe` began, but for requests that have begun."""
    global _everywhere
    _everywhere = tuple(one for one in _everywhere if one is not observer)


def tell_refusal(asked: Asked, error: GenAIError) -> None:
    """Tell the observers that a request is refused."""
    for observer in (*_everywhere, *HERE.get()):
        _guarded(observer.refused, asked, error)


class Observed:
    """A request that is run, and its watchers.

    Args:
        planned: The request.

    Attributes:
        planned: The request.
        thorough: Whether a watcher wants chunks and whole responses.
        outcome: Makes what is told at its end. Until it is known, nobody wanted the rest.
    """

    def __init__(self, planned: PlannedRequest) -> None:
        self.planned = planned
        begun = (_guarded(observer.began, planned) for observer in (*_everywhere, *HERE.get()))
        self._watchers: Sequence[Watcher] = [one for one in begun if one is not None]
        self.thorough = any(watcher.thorough for watcher in self._watchers)
        self.outcome: Callable[[], Outcome] = _left

    def wrote(self, chunk: Any) -> None:
        """Tell of a chunk of a stream, which only thorough watchers want."""
        for watcher in self._watchers:
            if watcher.thorough:
                _guarded(watcher.wrote, chunk)

    def fail(self, error: BaseException) -> None:
        """Tell that the request was not begun."""
        if isinstance(error, Exception):
            self.outcome = partial(Outcome, error=error)
        self.tell()

    def tell(self) -> None:
        """Tell how the request ended, once."""
        watchers, self._watchers = self._watchers, ()
        outcome, self.outcome = self.outcome, _left
        told = _guarded(outcome) if watchers else None
        if told is not None:
            for watcher in watchers:
                _guarded(watcher.ended, told)

    async def atell(self) -> None:
        """Tell as :meth:`tell`, without blocking the event loop."""
        if self.thorough and self._watchers:
            await asyncio.to_thread(self.tell)
        else:
            self.tell()


def _left() -> Outcome:
    return Outcome(left=True)


def _guarded(call: Callable[..., _T], *args: Any) -> _T | None:
    try:
        return call(*args)
    except Exception as error:  # noqa: BLE001 - whatever an observer does, the request goes on
        _logger.warning("A request could not be observed: %s", type(error).__name__)
        return None
