"""A load test: every load of a plan, in rounds, of one side or of two that take turns."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.evaluation.load.exchange import Exchange, Summary, pooled, summarize
from mlflow_phi3_onnx.evaluation.load.generators import arrivals, closed_loop, open_loop
from mlflow_phi3_onnx.evaluation.load.http_stream import HTTPError
from mlflow_phi3_onnx.evaluation.load.opening import open_load_side
from mlflow_phi3_onnx.evaluation.load.turns import WARM_UP, Ratio, interleaved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tqdm import tqdm

    from mlflow_phi3_onnx.evaluation.load.plan import Plan, Point
    from mlflow_phi3_onnx.evaluation.load.side import LoadSide

__all__ = ["COMPARED", "LoadTest", "Measured", "run_load_test", "run_sides"]

MODEL, COMPARE = "model", "compare"

COMPARED = (
    "output_throughput",
    "request_throughput",
    "ttft_ms_p50",
    "tpot_ms_p50",
    "e2el_ms_p50",
)
"""The figures of which two sides' ratios are taken."""

_WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Measured:
    """What a load gave.

    Attributes:
        point: The load.
        goals: The goals of its goodput, in seconds.
        rounds: The requests of each round, by the names of the sides.
    """

    point: Point
    goals: Mapping[str, float]
    rounds: Mapping[str, Sequence[Sequence[Exchange]]]

    def summary(self, side: str) -> Summary:
        """Return the figures of a side over all rounds."""
        return pooled(self.rounds[side], self.goals)

    def by_round(self, side: str) -> list[Summary]:
        """Return the figures of a side, round by round."""
        return [summarize(exchanges, self.goals) for exchanges in self.rounds[side]]

    def ratios(self) -> dict[str, Ratio]:
        """Return the model's figures by those of the other side, of the rounds that have both."""
        if COMPARE not in self.rounds:
            return {}
        ours, others = ([one.figures() for one in self.by_round(s)] for s in (MODEL, COMPARE))
        found: dict[str, Ratio] = {}
        for name in COMPARED:
            pairs = [(a.get(name), b.get(name)) for a, b in zip(ours, others, strict=True)]
            if samples := [a / b for a, b in pairs if a and b]:
                found[name] = Ratio.of(samples)
        return found


@dataclass(frozen=True)
class LoadTest:
    """What a load test found.

    Attributes:
        plan: What was asked for, with the seed that was drawn.
        sides: The sides, by name: ``model``, and ``compare`` where there are two.
        measured: What each load gave.
    """

    plan: Plan
    sides: Mapping[str, LoadSide]
    measured: Sequence[Measured]

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed, by the kind of failure."""
        found: dict[str, int] = {}
        for one in self.measured:
            for side in self.sides:
                for kind, count in one.summary(side).failures.items():
                    found[kind] = found.get(kind, 0) + count
        return found

    @property
    def idle(self) -> list[str]:
        """The loads in which a side got no request."""
        return [
            f"{one.point.load} ({one.point.lengths})"
            for one in self.measured
            if not all(one.summary(side).requests for side in self.sides)
        ]

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return sum(one.summary(side).requests for one in self.measured for side in self.sides)


def run_load_test(model: str | None, compare: str | None, plan: Plan) -> LoadTest:
    """Run a load test.

    Args:
        model: Where the model is; None is the demo model. See
            :func:`~mlflow_phi3_onnx.evaluation.load.opening.open_load_side`.
        compare: Where a second one is; None compares with none.
        plan: What to run.

    Raises:
        MlflowException: If a side cannot be opened, or cannot answer such requests at all. Requests
            that fail under load are counted.
    """
    if compare is None and (plan.compare_id is not None or plan.compare_config):
        raise InvalidRequestError(
            "compare_id and compare_config are for a second model. Give one with compare.",
            param="compare",
        )
    with ExitStack() as stack:
        sides = {
            MODEL: open_load_side(
                model, MODEL, stack, plan.model_id, plan.model_config, plan.timeout
            )
        }
        if compare is not None:
            sides[COMPARE] = open_load_side(
                compare, COMPARE, stack, plan.compare_id, plan.compare_config, plan.timeout
            )
        return run_sides(sides, plan)


def run_sides(sides: Mapping[str, LoadSide], plan: Plan) -> LoadTest:
    """Run a load test on sides that are open; see :func:`run_load_test`."""
    if plan.seed is None:
        plan = replace(plan, seed=secrets.randbelow(2**31))
    points = plan.points
    measured: list[Measured] = []
    total = len(points) * plan.rounds * len(sides) * plan.requests
    with rows_done(total, "request") as bar:
        for number, point in enumerate(points):
            turns = {
                name: partial(_round, side, point, plan, (plan.seed, number), name, bar)
                for name, side in sides.items()
            }
            bar.set_description(point.load)
            measured.append(Measured(point, plan.goodput, interleaved(turns, plan.rounds)))
    return LoadTest(plan, sides, measured)


def _round(
    side: LoadSide,
    point: Point,
    plan: Plan,
    seed: object,
    name: str,
    bar: tqdm[Any],
    turn: int,
) -> list[Exchange]:
    """Run one round of a load, or warm up for it.

    Prompts of two sides differ, for one server may be both; they arrive at the same times.
    """
    if turn == WARM_UP:
        _warm_up(side, point, (seed, name, "first"))
        return []
    times: list[float] = []
    if point.rate is not None:
        times = arrivals(point.rate, plan.requests, plan.seconds, (seed, turn))
    first = turn * plan.requests
    prompts = [
        side.prompt(point.prompt_tokens, point.prefix_tokens, (seed, name), first + number)
        for number in range(plan.requests)
    ]
    tokens = point.completion_tokens
    if point.callers is None:
        found = open_loop(side, prompts, tokens, times=times, done=bar.update)
    else:
        callers, seconds = point.callers, plan.seconds
        found = closed_loop(
            side, prompts, tokens, callers=callers, seconds=seconds, done=bar.update
        )
    bar.update(plan.requests - len(found))
    return found


def _warm_up(side: LoadSide, point: Point, seed: object) -> None:
    """Send as many requests as will run at once, and first one whose error is told."""
    lengths = point.prompt_tokens, point.prefix_tokens
    tokens = min(point.completion_tokens, _WARM_UP_TOKENS)
    try:
        side.send(side.prompt(*lengths, seed, 0), point.completion_tokens, lambda: None)
    except HTTPError as error:
        # What a busy server says is no fault of the request; it is counted in the load.
        if 400 <= error.status_code < 500 and error.status_code not in (408, 429):
            raise
    except (OSError, HTTPException):
        pass
    if point.callers is not None and point.callers > 1:
        prompts = [side.prompt(*lengths, seed, number + 1) for number in range(point.callers)]
        closed_loop(side, prompts, tokens, callers=point.callers)
