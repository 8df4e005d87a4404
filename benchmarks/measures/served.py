"""Clients of `mlflow models serve`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.load import ScoringServer, pings
from benchmarks.results import Row, Side, ratio_row
from benchmarks.serving import served
from benchmarks.subject import LOOPS, Scale, Subject
from mlflow_phi3_onnx.evaluation.load.exchange import Exchange, Spread, pooled, summarize
from mlflow_phi3_onnx.evaluation.load.generators import closed_loop
from mlflow_phi3_onnx.evaluation.load.turns import WARM_UP, interleaved

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
                    f"latency_{part}": {
                        name: getattr(pooled(loads).e2el_ms, part) / 1e3
                        for name, loads in results.items()
                    }
                    for part in ("p50", "p95")
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
                    "idle": lambda _: pings(url, None, scale.pick(IDLE_SECONDS, 0.2)),
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


def _clients(scale: Scale, subject: Subject, url: str, count: int, turn: int) -> list[Exchange]:
    """Send two rounds of requests of a number of clients; four, where it is one."""
    requests = 2 * count if count > 1 else scale.pick(4, 2)
    if turn == WARM_UP:
        requests = count
    server, length = ScoringServer(url, subject), scale.pick(ANSWER_TOKENS, 8)
    prompts = [
        server.prompt(PROMPT_TOKENS, 0, ("clients", count, turn), number)
        for number in range(requests)
    ]
    found = closed_loop(server, prompts, length, callers=count)
    if any(one.completion_tokens != length for one in found):
        raise ValueError(f"{pooled([found]).short} answers are too short, or failed.")
    return found


def _pings(subject: Subject, url: str, turn: int) -> dict[str, Any]:
    tokens = 64 if turn == WARM_UP else LONG_PROMPT
    prompt = subject.prompts.text(tokens, "ping", turn)
    return pings(url, {"prompt": prompt, "max_tokens": 1}, 0)


def _speeds(results: list[list[Exchange]]) -> list[float]:
    return [summarize(one).output_throughput for one in results]


def _p99(result: dict[str, Any]) -> float:
    spread = Spread.of(result["latencies"])
    assert spread is not None
    return 1e3 * spread.p99
