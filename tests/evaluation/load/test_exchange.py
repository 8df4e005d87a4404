"""The figures of a load, on numbers made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlflow_phi3_onnx.evaluation.load.exchange import Exchange, Spread, pooled, summarize
from mlflow_phi3_onnx.evaluation.load.turns import Ratio, interleaved, paired


def exchange(*chunks: float, sent: float = 0.0, ended: float = 1.0, **more: Any) -> Exchange:
    known: dict[str, Any] = {
        "due": sent,
        "asked_tokens": 4,
        "prompt_tokens": 10,
        "completion_tokens": 4,
    }
    return Exchange(sent=sent, chunks=chunks, ended=ended, **{**known, **more})


def test_the_latencies_of_one_request() -> None:
    one = exchange(1.5, 1.7, 2.1, sent=1.0, ended=2.2)
    assert one.ttft == pytest.approx(0.5)
    assert one.e2el == pytest.approx(1.2)
    assert one.tpot == pytest.approx(0.6 / 3)  # four tokens have three gaps, and the end is none
    assert one.itl == pytest.approx([0.2, 0.4])  # three chunks have two


def test_what_has_no_text_or_one_token_has_no_time_per_token() -> None:
    assert (exchange().ttft, exchange().tpot, exchange().itl) == (None, None, [])
    single = exchange(0.5, completion_tokens=1)
    assert (single.ttft, single.tpot, single.itl) == (0.5, None, [])
    assert exchange(0.5, ended=1.0, completion_tokens=2).tpot is None  # both came at once


def test_percentiles_lie_where_those_of_numpy_do() -> None:
    spread = Spread.of([float(value) for value in range(101, 0, -1)])
    assert spread == Spread(mean=51, p50=51, p90=91, p95=96, p99=100, max=101)
    assert Spread.of([1.0, 2.0]) == pytest.approx(Spread(1.5, 1.5, 1.9, 1.95, 1.99, 2.0))
    assert Spread.of([3.0]) == Spread(3, 3, 3, 3, 3, 3)
    assert Spread.of([]) is None


def test_a_load_is_summed_up_and_its_failures_are_counted_apart() -> None:
    found = summarize(
        [
            exchange(0.5, 0.6, sent=0.0, ended=1.0),
            exchange(1.5, 1.6, sent=1.0, ended=4.0, completion_tokens=2),
            exchange(0.1, sent=1.0, ended=2.0, completion_tokens=1, error="HTTP 500"),
            exchange(sent=1.0, ended=1.1, completion_tokens=0, error="HTTP 429"),
            exchange(sent=1.0, ended=1.1, completion_tokens=0, error="HTTP 429"),
        ]
    )
    assert (found.requests, found.failed) == (5, 3)
    assert found.failures == {"HTTP 429": 2, "HTTP 500": 1}
    assert found.seconds == 4.0
    assert (found.prompt_tokens, found.completion_tokens, found.short) == (20, 6, 1)
    assert found.request_throughput == 0.5
    assert found.output_throughput == 1.5
    assert found.total_throughput == 6.5
    assert found.goodput is None
    assert found.ttft_ms
    assert found.ttft_ms.max == pytest.approx(500)
    assert found.e2el_ms
    assert found.e2el_ms.p50 == pytest.approx(2000)
    assert found.figures()["ttft_ms_p50"] == pytest.approx(500)
    assert found.figures()["failed_requests"] == 3
    assert all(math.isfinite(value) for value in found.figures().values())


def test_rounds_are_pooled_one_after_the_other() -> None:
    first = [exchange(0.5, ended=1.0), exchange(0.5, ended=2.0)]
    second = [exchange(0.5, ended=3.0)]
    found = pooled([first, second])
    assert (found.requests, found.seconds) == (3, 5.0)
    assert found.output_throughput == pytest.approx(12 / 5)


def test_where_nothing_came_there_is_no_latency() -> None:
    found = summarize([exchange(prompt_tokens=None, error="HTTP 500", completion_tokens=0)])
    assert (found.ttft_ms, found.e2el_ms, found.output_throughput) == (None, None, 0)
    assert summarize([]).request_throughput == 0
    assert summarize([exchange(0.5, prompt_tokens=None)]).total_throughput is None


def test_goodput_counts_what_meets_every_goal() -> None:
    loads = [
        exchange(0.5, 0.6, ended=1.0),  # TTFT 0.5 s, TPOT 0.03 s
        exchange(0.4, 0.5, 1.3, ended=2.0),  # TPOT 0.3 s
        exchange(0.6, 0.7, ended=1.0),  # TTFT 0.6 s
        exchange(0.1, 0.2, ended=0.3, error="HTTP 500"),
    ]
    assert summarize(loads, {"ttft": 0.5, "tpot": 0.2}).goodput == 0.5
    assert summarize(loads, {"ttft": 0.499}).goodput == 0.5
    assert summarize(loads, {"itl": 0.1001}).goodput == 1.0


def test_sides_take_turns_in_both_orders() -> None:
    seen: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        return lambda turn: seen.append((name, turn)) or turn

    assert interleaved({"a": side("a"), "b": side("b")}, 2, pause=0) == {"a": [0, 1], "b": [0, 1]}
    assert seen == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_ratios_are_taken_turn_by_turn() -> None:
    ratio = Ratio.of(paired([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]))
    assert ratio == Ratio(median=2, low=1, high=3, samples=[2, 3, 1])
