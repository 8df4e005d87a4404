"""One request of a load, when what came of it, and the figures of many.

The terms are those of ``vllm bench serve`` and ``genai-perf``:

- TTFT, time to first token: from sending the request to the first chunk with text;
- E2E latency: from sending it to the end of the response;
- TPOT, time per output token: from the first chunk with text to the last one, by (completion
  tokens - 1), one figure a request;
- ITL, inter-token latency: the time between two chunks with text, one figure a pair of chunks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LATENCIES", "Exchange", "Spread", "Summary", "pooled", "summarize"]

LATENCIES = ("ttft", "tpot", "itl", "e2el")
"""The latencies that are measured, by the short names of ``vllm bench serve``."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and its response. All times are seconds since its load began.

    Attributes:
        due: When it was to be sent: in an open loop its arrival, in a closed one when it was sent.
        sent: When it was sent.
        chunks: When each chunk with text came.
        ended: When the response was whole, or had failed.
        asked_tokens: How many completion tokens were asked for.
        prompt_tokens: How many tokens the prompt had; None where the side did not tell.
        completion_tokens: How many the completion had; where the side did not tell, its chunks.
        error: What kind of failure it was; None where it was none.
    """

    due: float
    sent: float
    chunks: tuple[float, ...]
    ended: float
    asked_tokens: int
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token; None where no text came."""
        return self.chunks[0] - self.sent if self.chunks else None

    @property
    def e2el(self) -> float:
        """End-to-end latency."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token; None where there were fewer than two, or all came at once."""
        if len(self.chunks) < 2 or self.completion_tokens < 2:
            return None
        return (self.chunks[-1] - self.chunks[0]) / (self.completion_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies."""
        return [b - a for a, b in zip(self.chunks, self.chunks[1:], strict=False)]

    def latencies(self, name: str) -> list[float]:
        """Return its latencies of a name of :data:`LATENCIES`, in seconds: none, one or many."""
        found: float | list[float] | None = getattr(self, name)
        if isinstance(found, list):
            return found
        return [] if found is None else [found]

    def meets(self, goals: Mapping[str, float]) -> bool:
        """Tell whether it was answered, and none of its latencies is above its goal in seconds."""
        within = (value <= most for name, most in goals.items() for value in self.latencies(name))
        return self.error is None and all(within)

    def as_json(self) -> dict[str, Any]:
        """Return what is told of a single request: no text, and not the time of each chunk."""
        known = ("due", "sent", "asked_tokens", "prompt_tokens", "completion_tokens", "error")
        times = {f"{name}_ms": _milliseconds(getattr(self, name)) for name in ("ttft", "e2el")}
        return {**{name: getattr(self, name) for name in known}, **times}


@dataclass(frozen=True)
class Spread:
    """How values lie; percentiles lie between the two nearest values, as NumPy's do."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of values; None where there are none."""
        if not values:
            return None
        p50, p90, p95, p99 = map(float, np.percentile(values, [50, 90, 95, 99]))
        return cls(float(np.mean(values)), p50, p90, p95, p99, max(values))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of one load. Latencies are in milliseconds, of the requests that were answered.

    Attributes:
        requests: How many requests were sent.
        failures: How many failed, by the kind of failure.
        seconds: From the load's beginning to its last response.
        prompt_tokens: Of the requests that were answered; None where a side did not tell.
        completion_tokens: Of the requests that were answered.
        short: How many completions were shorter than asked for.
        request_throughput: Answered requests in a second.
        output_throughput: Completion tokens in a second.
        total_throughput: Prompt and completion tokens in a second.
        goodput: Requests in a second that met all goals; None without goals.
        ttft_ms: Time to first token.
        tpot_ms: Time per output token.
        itl_ms: Inter-token latency.
        e2el_ms: End-to-end latency.
    """

    requests: int
    failures: dict[str, int]
    seconds: float
    prompt_tokens: int | None
    completion_tokens: int
    short: int
    request_throughput: float
    output_throughput: float
    total_throughput: float | None
    goodput: float | None
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2el_ms: Spread | None

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return sum(self.failures.values())

    def figures(self) -> dict[str, float]:
        """Return the figures that are known, by flat names, as metrics of a run have them."""
        found: dict[str, float] = {"failed_requests": self.failed}
        for name, value in asdict(self).items():
            if isinstance(value, dict) and name != "failures":
                found |= {f"{name}_{part}": number for part, number in value.items()}
            elif isinstance(value, int | float):
                found[name] = value
        return found

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def summarize(exchanges: Sequence[Exchange], goals: Mapping[str, float] | None = None) -> Summary:
    """Return the figures of one load.

    Args:
        exchanges: Its requests.
        goals: The most seconds that latencies may have, by the names of :data:`LATENCIES`.
    """
    return pooled([exchanges], goals)


def pooled(
    loads: Sequence[Sequence[Exchange]], goals: Mapping[str, float] | None = None
) -> Summary:
    """Return the figures of several loads of one kind, that ran one after the other."""
    exchanges = [one for load in loads for one in load]
    good = [one for one in exchanges if one.error is None]
    seconds = sum(max((one.ended for one in load), default=0.0) for load in loads)
    prompts = _total(one.prompt_tokens for one in good)
    completions = sum(one.completion_tokens for one in good)
    total = None if prompts is None else prompts + completions
    met = None if not goals else sum(one.meets(goals) for one in exchanges)
    spreads = {
        f"{name}_ms": Spread.of([1e3 * value for one in good for value in one.latencies(name)])
        for name in LATENCIES
    }
    return Summary(
        requests=len(exchanges),
        failures=dict(sorted(Counter(one.error for one in exchanges if one.error).items())),
        seconds=seconds,
        prompt_tokens=prompts,
        completion_tokens=completions,
        short=sum(one.completion_tokens < one.asked_tokens for one in good),
        request_throughput=_rate(len(good), seconds),
        output_throughput=_rate(completions, seconds),
        total_throughput=None if total is None else _rate(total, seconds),
        goodput=None if met is None else _rate(met, seconds),
        **spreads,
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(filter(None, known))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
