"""Clients of `mlflow models serve`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import load
from benchmarks.results import Row, Side, ratio_row
from benchmarks.serving import served
from benchmarks.subject import LOOPS, Scale, Subject
from benchmarks.timing import WARM_UP, interleaved, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["clients", "ping"]

CLIENTS = 8
PROMPT_TOKENS = 32
ANSWER_TOKENS = 64
LONG_PROMPT = 2000
IDLE_SECONDS = 3.0
REPEATS = 3


def clients(scale: Scale) -> Iterator[Row]:
    """Compare the throughput of eight clients with that of one."""
    for number, subject in enumerate(scale.wide()):
        for loop in _loops(scale) if number == 0 else ("slots",):
            with subject.saved("llm/v1/completions", loop=loop) as model, served(model) as url:
                results = interleaved(
                    {
                        "many": partial(_clients, scale, subject, url, CLIENTS),
                        "one": partial(_clients, scale, subject, url, 1),
                    },
                    scale.pick(REPEATS, 1),
                )
            yield ratio_row(
                "clients",
                f"`{loop}`, {subject.name}",
                Side("8 clients", "tokens/s", _speeds(results["many"])),
                Side("1 client", "tokens/s", _speeds(results["one"])),
                {
                    "latency_p50": {name: _latency(results[name], 50) for name in results},
                    "latency_p95": {name: _latency(results[name], 95) for name in results},
                },
            )


def ping(scale: Scale) -> Iterator[Row]:
    """Ask whether the server lives, while it computes a long prompt."""
    subject = scale.wide()[0]
    repeats = scale.pick(REPEATS, 1)
    for loop in _loops(scale):
        with subject.saved("llm/v1/completions", loop=loop) as model, served(model) as url:
            results = interleaved(
                {
                    "busy": partial(_pings, subject, url),
                    "idle": lambda _: load.run(
                        "pings", url=url, payload=None, seconds=scale.pick(IDLE_SECONDS, 0.2)
                    ),
                },
                repeats,
            )
        busy, idle = ([_p99(one) for one in results[name]] for name in ("busy", "idle"))
        yield Row(
            "ping",
            f"`{loop}`, {subject.name}",
            Side("p99 during the prefill", "ms", busy),
            Side("p99 of an idle server", "ms", idle),
            busy,
            {
                "pings": [len(one["latencies"]) for one in results["busy"]],
                "prefill_seconds": [one["seconds"] for one in results["busy"]],
                "slowest_ms": 1e3 * max(max(one["latencies"]) for one in results["busy"]),
            },
        )


def _loops(scale: Scale) -> tuple[str, ...]:
    """Leave out a loop in a quick run: it is the servers that take time to start."""
    return scale.pick(LOOPS, LOOPS[-1:])


def _clients(scale: Scale, subject: Subject, url: str, count: int, turn: int) -> dict[str, Any]:
    """Send two rounds of requests of a number of clients; four, where it is one."""
    requests = 2 * count if count > 1 else scale.pick(4, 2)
    if turn == WARM_UP:
        requests = count
    length = scale.pick(ANSWER_TOKENS, 8)
    payloads = [
        {
            "prompt": subject.prompts.text(PROMPT_TOKENS, "clients", count, turn, number),
            **subject.length(length),
        }
        for number in range(requests)
    ]
    result = load.run("closed_loop", url=url, clients=count, payloads=payloads)
    if result["tokens"] != requests * length:
        raise ValueError(f"The answers have {result['tokens']} tokens.")
    return result


def _pings(subject: Subject, url: str, turn: int) -> dict[str, Any]:
    tokens = 64 if turn == WARM_UP else LONG_PROMPT
    prompt = subject.prompts.text(tokens, "ping", turn)
    return load.run("pings", url=url, payload={"prompt": prompt, "max_tokens": 1}, seconds=0)


def _speeds(results: list[dict[str, Any]]) -> list[float]:
    return [result["tokens"] / result["seconds"] for result in results]


def _latency(results: list[dict[str, Any]], percent: int) -> float:
    return percentile([one for result in results for one in result["latencies"]], percent)


def _p99(result: dict[str, Any]) -> float:
    return 1e3 * percentile(result["latencies"], 99)
