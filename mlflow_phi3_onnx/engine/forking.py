"""What engines do when their process forks."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Forkable", "watch_forks"]


class Forkable(Protocol):
    """Something with threads or connections, which a forked process does not have."""

    def hold(self) -> None:
        """Wait until nothing is half done, and keep it so."""
        ...

    def go_on(self) -> None:
        """End what :meth:`hold` began."""
        ...

    def disown(self) -> None:
        """Begin anew in the forked process, in which ``hold`` is never ended."""
        ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_held: list[Forkable] = []


def watch_forks(forkable: Forkable) -> None:
    """Call an object's methods around each fork, for as long as it lives."""
    _watched.add(forkable)


def _before_fork() -> None:
    _held[:] = sorted(_watched, key=id)
    for forkable in _held:
        forkable.hold()


def _after_fork_in_parent() -> None:
    for forkable in reversed(_held):
        forkable.go_on()
    _held.clear()


def _after_fork_in_child() -> None:
    for forkable in _held:
        forkable.disown()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
