"""What is asked of a load test: one table for its flags, its checks and its documentation."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_phi3_onnx.core.checks import Check, allows, integer, json_object, number, string
from mlflow_phi3_onnx.core.options import Option, read, table
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.evaluation.load.exchange import LATENCIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["OPTIONS", "Plan", "Point"]

T = TypeVar("T")

MAX_CALLERS = 1024
MAX_REQUESTS = 10_000
"""Of one load: each request of an open loop may need a thread of its own."""


@dataclass(frozen=True)
class Point:
    """One load of a sweep.

    Attributes:
        callers: How many callers a closed loop has; None in an open loop.
        rate: How many requests arrive in a second in an open loop; None in a closed one.
        prompt_tokens: Tokens of each prompt.
        completion_tokens: Tokens of each completion.
        prefix_tokens: How many tokens at their beginning all prompts share.
    """

    callers: int | None
    rate: float | None
    prompt_tokens: int
    completion_tokens: int
    prefix_tokens: int

    @property
    def load(self) -> str:
        """The load, in words."""
        return f"{self.rate:g} requests/s" if self.callers is None else f"{self.callers} at once"

    @property
    def lengths(self) -> str:
        """Tokens of prompt and completion, and of the prefix where there is one."""
        shared = f", {self.prefix_tokens} shared" if self.prefix_tokens else ""
        return f"{self.prompt_tokens}+{self.completion_tokens}{shared}"

    @property
    def key(self) -> str:
        """The load, as a part of a metric's name."""
        return f"rate_{self.rate:g}" if self.callers is None else f"concurrency_{self.callers}"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked load test; the table describes each field."""

    concurrency: tuple[int, ...] = ()
    rate: tuple[float, ...] = ()
    prompt_tokens: tuple[int, ...] = (128,)
    completion_tokens: tuple[int, ...] = (64,)
    prefix_tokens: tuple[int, ...] = (0,)
    requests: int = 16
    seconds: float = 60.0
    rounds: int = 3
    seed: int | None = None
    timeout: float = 600.0
    goodput: Mapping[str, float] = field(default_factory=dict[str, float])
    model_id: str | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    compare_id: str | None = None
    compare_config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Plan:
        """Check options, as texts or as what they are.

        Raises:
            InvalidRequestError: If one is not what it may be.
            UnsupportedParameterError: If one is not known.
        """
        plan = cls(**read(OPTIONS, values, "an option of a load test", shown=True))
        if max(plan.prefix_tokens) >= min(plan.prompt_tokens):
            raise InvalidRequestError(
                f"prefix_tokens must be less than prompt_tokens; got {max(plan.prefix_tokens):,}"
                f" and {min(plan.prompt_tokens):,}. A prompt has at least one token of its own.",
                param="prefix_tokens",
            )
        if max(plan.concurrency, default=1) > plan.requests:
            raise InvalidRequestError(
                f"requests must be at least concurrency; got {plan.requests:,} and"
                f" {max(plan.concurrency):,}. Fewer requests are never so many at once.",
                param="requests",
            )
        return plan

    @property
    def points(self) -> list[Point]:
        """The loads, in order."""
        usual = [one for one in DEFAULT_CONCURRENCY if one <= self.requests]
        closed = self.concurrency or (() if self.rate else usual)
        loads = [*((one, None) for one in closed), *((None, one) for one in self.rate)]
        lengths = (self.prompt_tokens, self.completion_tokens, self.prefix_tokens)
        return [
            Point(callers, rate, *of)
            for of in itertools.product(*lengths)
            for callers, rate in loads
        ]


DEFAULT_CONCURRENCY = (1, 4, 8)

_DEFAULTS = {one.name: one.default for one in fields(Plan)}


def _list_of(one: Check[T], read_text: Callable[[str], Any], what: str) -> Check[tuple[T, ...]]:
    """Make a check for a few values, or a text with commas between them."""

    @allows(f"{what}, or several with commas between", type="string")
    def check(value: Any) -> tuple[T, ...]:
        parts = map(read_text, value.split(",")) if isinstance(value, str) else value
        if not isinstance(value, str | list | tuple):
            parts = (value,)
        found = tuple(map(one, parts))
        if not found or len(set(found)) < len(found):
            raise ValueError
        return found

    return check


@allows(
    f"goals such as ttft:500,tpot:50, each of {', '.join(LATENCIES)} and its most milliseconds",
    type="string",
)
def _goals(value: Any) -> dict[str, float]:
    pairs = [goal.split(":") for goal in string(value).split(",")]
    goals = {name.strip(): float(most) / 1e3 for name, most in pairs}
    above = all(math.isfinite(most) and most > 0 for most in goals.values())
    if not above or not set(goals) <= set(LATENCIES) or len(goals) < len(pairs):
        raise ValueError
    return goals


def _counts(low: int, high: int) -> Check[tuple[int, ...]]:
    return _list_of(integer(low, high), int, f"an integer from {low} to {high:,}")


def _option(name: str, about: str, check: Check[Any], otherwise: str = "{}") -> Option:
    default: Any = _DEFAULTS.get(name)
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    default = default if isinstance(default, int | float | str) else None
    typed = check.schema.get("type") != "string"
    return Option(name, about, check, default, otherwise, from_text=typed)


_tokens = _counts(1, 1 << 20)

OPTIONS = table(
    _option(
        "concurrency",
        "How many callers a closed loop has: each sends a request, waits for the whole completion,"
        " and sends the next.",
        _counts(1, MAX_CALLERS),
        f"{','.join(map(str, DEFAULT_CONCURRENCY))}, up to the requests, or none where there is a"
        " rate",
    ),
    _option(
        "rate",
        "How many requests arrive in a second in an open loop, whether or not others are answered:"
        " a Poisson process.",
        _list_of(number(0, 1000, above=True), float, "a number above 0, up to 1000"),
    ),
    _option("prompt_tokens", "Tokens of each prompt.", _tokens),
    _option("completion_tokens", "Tokens of each completion.", _tokens),
    _option(
        "prefix_tokens",
        "How many tokens at their beginning all prompts share, so that a prefix cache has them; 0"
        " is a cold cache: prompts differ from the beginning.",
        _counts(0, 1 << 20),
    ),
    _option("requests", "The most requests of a load in one round.", integer(1, MAX_REQUESTS)),
    _option(
        "seconds",
        "Seconds after which a load sends no more requests in a round; those under way are waited"
        " for.",
        number(0, above=True),
    ),
    _option(
        "rounds",
        "How many times each load is repeated. With a second model, the two take turns.",
        integer(1, 100),
    ),
    _option(
        "seed",
        "Draws prompts and arrivals. With the same seed a server that has run before may have the"
        " prompts in its cache.",
        integer(0, 2**63 - 1),
        "another one each time, which is logged",
    ),
    _option(
        "timeout",
        "Seconds after which a request has failed that no server says anything to.",
        number(0, above=True),
    ),
    _option(
        "goodput",
        "Counts the requests in a second that meet goals (service level objectives), in"
        " milliseconds.",
        _goals,
    ),
    _option("model_id", "Which of a URL's models.", string, "the first that is listed at /models"),
    _option(
        "model_config",
        "Replaces values of the model's own model_config, by key.",
        json_object,
        "the model's own",
    ),
    _option("compare_id", "The model_id of the second model.", string, "as model_id's"),
    _option(
        "compare_config", "The model_config of the second model.", json_object, "the model's own"
    ),
)
"""The options of a load test, by name, in the order of its help."""
