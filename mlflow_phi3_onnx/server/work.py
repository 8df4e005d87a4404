"""Work for a client that may go away: it goes on only while somebody waits for it, and in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_phi3_onnx.errors import GenerationTimeoutError
from mlflow_phi3_onnx.server.errors import ClientGoneError, DrainingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from starlette.types import Receive

__all__ = ["Lifetime"]

T = TypeVar("T")


class Lifetime:
    """How long a request may go on.

    Args:
        receive: The connection, whose body has been read.
        seconds: Until the request is given up.
        ending: Is done when the server gives up whatever is running.
    """

    def __init__(self, receive: Receive, seconds: float, ending: asyncio.Future[None]) -> None:
        self._receive = receive
        self._allowed = seconds
        self._ending = ending
        self._end = asyncio.get_running_loop().time() + seconds

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work, and cancel it when its client is gone, its time is over or the server ends.

        Raises:
            ClientGoneError: If the client has gone.
            DrainingError: If the server ends.
            GenerationTimeoutError: If the time is over.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.until_gone())
        try:
            await asyncio.wait(
                {task, gone, self._ending},
                timeout=self._left(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
            raise (
                ClientGoneError("The client has closed the connection.")
                if gone.done()
                else (self.reason())
            )
        finally:
            await stopped(task, gone)

    async def until_gone(self) -> None:
        """Wait for the end of the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def reason(self) -> DrainingError | GenerationTimeoutError:
        """Say why the request is given up, where its client is there."""
        if self._ending.done():
            return DrainingError("The server is shutting down. Try again, maybe elsewhere.")
        return GenerationTimeoutError(
            f"The request was not finished within {self._allowed:g} seconds, which is all that this"
            " server gives one (timeout). Lower max_tokens, or try again later."
        )

    def on_end(self, call: Callable[[], object]) -> Callable[[], None]:
        """Call a function when time is over or the server ends; returns what calls that off."""
        timer = asyncio.get_running_loop().call_at(self._end, call)

        def ended(_: Awaitable[None]) -> None:
            call()

        self._ending.add_done_callback(ended)

        def call_off() -> None:
            timer.cancel()
            self._ending.remove_done_callback(ended)

        return call_off

    def _left(self) -> float:
        return max(0.0, self._end - asyncio.get_running_loop().time())


async def stopped(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they end."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # is known, or nobody wants it
