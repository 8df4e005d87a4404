"""Resident memory, after many requests of all kinds."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import random
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.results import Row, Side
from benchmarks.subject import LOOPS, Scale, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_phi3_onnx import GenAIModel

__all__ = ["resident_memory"]

CALLERS = 8
STEP = 100
REQUESTS = 1000
CANCELLED = 200
QUICK_STEP = 10
QUICK_CANCELLED = 4
PROMPT_TOKENS = (4, 400)
ANSWER_TOKENS = (1, 64)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
    "required": ["name", "size"],
}
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"logprobs": True, "top_logprobs": 5},
    {"stop": ["the", "</end>"], "frequency_penalty": 0.5},
    {"temperature": 1.0, "n": 2},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
)


def resident_memory(scale: Scale) -> Iterator[Row]:
    """Compare the process's resident memory after all requests with that after the first ones.

    Eight threads chat at once; every sixth request from then on is a stream that is closed after
    its second piece. Each loop has a process of its own.
    """
    subject = scale.small()
    for loop in LOOPS:
        if scale.quick:
            resident = _resident_after(scale, loop)
        else:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                resident = pool.submit(_resident_after, scale, loop).result()
        first = scale.pick(STEP, QUICK_STEP)
        yield Row(
            "memory",
            f"`{loop}`, {subject.name}",
            Side("after all of them", "MB", [resident[-1]]),
            Side(f"after {first}", "MB", [resident[0]]),
            [100 * (resident[-1] / resident[0] - 1)],
            {"cancelled": scale.pick(CANCELLED, QUICK_CANCELLED), f"mb_every_{first}": resident},
        )


def _resident_after(scale: Scale, loop: str) -> list[float]:
    """Return the resident memory after each so many requests, in MB."""
    subject = scale.small()
    step, steps = scale.pick(STEP, QUICK_STEP), scale.pick(REQUESTS // STEP, 3)
    cancelled = scale.pick(CANCELLED, QUICK_CANCELLED)
    numbers = itertools.count()
    resident: list[float] = []
    with subject.native(loop) as model:
        for number in range(steps):
            done, due = (cancelled * max(n, 0) // (steps - 1) for n in (number - 1, number))
            _send(model, subject, numbers, step, cancelled=due - done)
            resident.append(_resident())
    return resident


def _send(
    model: GenAIModel,
    subject: Subject,
    numbers: Iterator[int],
    requests: int,
    *,
    cancelled: int,
) -> None:
    """Send requests, and between them some that are cancelled."""
    work = [False] * requests + [True] * cancelled
    random.Random(requests).shuffle(work)
    lock = threading.Lock()

    def send(cancel: bool) -> None:
        with lock:
            number = next(numbers)
        _send_one(model, subject, number, cancel=cancel)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(send, work))


def _send_one(model: GenAIModel, subject: Subject, number: int, *, cancel: bool) -> None:
    rng = random.Random(number)
    prompt = subject.prompts.text(rng.randint(*PROMPT_TOKENS), "memory", number)
    options = {**rng.choice(KINDS), "max_tokens": rng.randint(*ANSWER_TOKENS)}
    messages = [{"role": "user", "content": prompt}]
    if not cancel and number % 2:
        model.chat(messages, **options)
        return
    stream = model.stream_chat(messages, **options)
    for _ in itertools.islice(stream, 2 if cancel else None):
        pass
    stream.close()


def _resident() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6
