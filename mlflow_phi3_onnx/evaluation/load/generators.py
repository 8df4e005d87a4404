"""Who sends requests when: callers that wait for their answers, or arrivals that do not."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.evaluation.load.exchange import Exchange
from mlflow_phi3_onnx.evaluation.load.http_stream import HTTPError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.evaluation.load.side import LoadPrompt, LoadSide

__all__ = ["arrivals", "closed_loop", "failure", "open_loop"]

Done: TypeAlias = Callable[[], object]

_FAILURES = (GenAIError, OSError, HTTPException)
_EMPTY = "empty answer"


def closed_loop(
    side: LoadSide,
    prompts: Sequence[LoadPrompt],
    tokens: int,
    *,
    callers: int,
    seconds: float | None = None,
    done: Done = lambda: None,
) -> list[Exchange]:
    """Send requests from callers, each of which waits for its answer before it sends the next.

    Args:
        side: Who answers.
        prompts: The requests' prompts; the callers take them in order.
        tokens: How many tokens each completion has.
        callers: How many requests are under way at once.
        seconds: After this time no more requests are sent; None sends all.
        done: Is called after each request, in any thread.

    Returns:
        The requests that were sent, in order.
    """
    waiting = iter(enumerate(prompts))
    lock, over = threading.Lock(), threading.Event()
    found: dict[int, Exchange] = {}
    begin = time.perf_counter()

    def call() -> None:
        while not over.is_set():
            if seconds is not None and time.perf_counter() - begin >= seconds:
                return
            with lock:
                number, prompt = next(waiting, (-1, None))
            if prompt is None:
                return
            found[number] = _send(side, prompt, tokens, begin, None)
            done()

    with ThreadPoolExecutor(callers) as pool:
        try:
            for caller in [pool.submit(call) for _ in range(callers)]:
                caller.result()
        finally:
            over.set()
    return [found[number] for number in sorted(found)]


def arrivals(rate: float, most: int, seconds: float | None, seed: object) -> list[float]:
    """Draw when requests arrive: a Poisson process, whose gaps are exponentially distributed.

    Args:
        rate: How many requests arrive in a second, on average.
        most: The most requests.
        seconds: Until when they arrive; None sets no end.
        seed: The same seed gives the same times.

    Returns:
        Seconds since the load's beginning, ascending.
    """
    draw = random.Random(repr(seed))  # noqa: S311 - it keeps no secret
    times: list[float] = []
    now = draw.expovariate(rate)
    while len(times) < most and (seconds is None or now < seconds):
        times.append(now)
        now += draw.expovariate(rate)
    return times


def open_loop(
    side: LoadSide,
    prompts: Sequence[LoadPrompt],
    tokens: int,
    *,
    times: Sequence[float],
    done: Done = lambda: None,
) -> list[Exchange]:
    """Send requests when they arrive, whether or not earlier ones are answered.

    Args:
        side: Who answers.
        prompts: The requests' prompts, at least as many as there are arrivals.
        tokens: How many tokens each completion has.
        times: When requests arrive, in seconds from now.
        done: Is called after each request, in any thread.

    Returns:
        The requests, in order.
    """

    def call(prompt: LoadPrompt, due: float) -> Exchange:
        exchange = _send(side, prompt, tokens, begin, due)
        done()
        return exchange

    with ThreadPoolExecutor(max(1, len(times))) as pool:
        begin = time.perf_counter()
        sent: list[Any] = []
        try:
            for prompt, due in zip(prompts, times, strict=False):
                time.sleep(max(0.0, begin + due - time.perf_counter()))
                sent.append(pool.submit(call, prompt, due))
            return [one.result() for one in sent]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _send(
    side: LoadSide, prompt: LoadPrompt, tokens: int, begin: float, due: float | None
) -> Exchange:
    """Send one request, and note the times of what comes back."""
    chunks: list[float] = []
    sent = time.perf_counter() - begin
    usage, error = None, None
    try:
        usage = side.send(prompt, tokens, lambda: chunks.append(time.perf_counter() - begin))
    except _FAILURES as problem:
        error = failure(problem)
    ended = time.perf_counter() - begin
    told = usage and usage.completion_tokens
    if error is None and not chunks and not told:
        error = _EMPTY
    return Exchange(
        due=sent if due is None else due,
        sent=sent,
        chunks=tuple(chunks),
        ended=ended,
        asked_tokens=tokens,
        prompt_tokens=usage and usage.prompt_tokens,
        completion_tokens=len(chunks) if told is None else told,
        error=error,
    )


def failure(error: Exception) -> str:
    """Name the kind of a failure, without its message: that may have anybody's text in it."""
    if isinstance(error, HTTPError):
        return error.kind
    return type(error).__name__
