"""Time to the first token: of a request that comes late, and of a second turn."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import LOOPS, Scale, Subject
from mlflow_phi3_onnx.evaluation.load.exchange import Spread
from mlflow_phi3_onnx.evaluation.load.turns import WARM_UP, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_phi3_onnx import GenAIModel

__all__ = ["late_arrival", "second_turn"]

SHORT_PROMPT = 32
SHORT_ANSWER = 8
LONG_PROMPT = 32
LONG_ANSWER = 500
ARRIVALS = 6
ARRIVAL_TOKENS = 40
"""How many tokens of the long answer lie between two arrivals, at least."""

HISTORY = 500
QUESTION = 16
FIRST_ANSWER = 8
REPEATS = 3


@dataclass
class _LongAnswer:
    """An answer that another thread reads, and when each of its pieces came."""

    times: list[float] = field(default_factory=list[float])
    over: threading.Event = field(default_factory=threading.Event)
    enough: threading.Event = field(default_factory=threading.Event)

    def read(self, model: GenAIModel, prompt: str, options: dict[str, int]) -> None:
        """Read the answer, until it is over or enough of it was read."""
        try:
            stream = model.stream_complete(prompt, **options)
            for _ in stream:
                self.times.append(time.perf_counter())
                if self.enough.is_set():
                    break
            stream.close()
        finally:
            self.over.set()

    def wait(self, tokens: int) -> bool:
        """Wait until it has so many pieces; False if it never has."""
        while len(self.times) < tokens:
            if self.over.wait(0.002):
                return False
        return True

    @property
    def gaps(self) -> list[float]:
        """The seconds between two pieces."""
        return [one - other for one, other in zip(self.times[1:], self.times, strict=False)]


def late_arrival(scale: Scale) -> Iterator[Row]:
    """Compare the first token of short requests beside a long answer with that of them alone."""
    subject = scale.wide()[0]
    for loop in LOOPS:
        with subject.native(loop) as model:
            gaps: dict[str, list[float]] = {"alone": [], "beside": []}
            results = interleaved(
                {
                    "beside": partial(_arrive, scale, subject, model, gaps),
                    "alone": partial(_alone, scale, subject, model),
                },
                scale.pick(REPEATS, 1),
            )
        yield ratio_row(
            "late-arrival",
            f"`{loop}`, {subject.name}",
            Side("first token beside a long answer", "s", results["beside"]),
            Side("first token alone", "s", results["alone"]),
            {
                "inter_token_seconds": {
                    f"{when}_{part}": value
                    for when, spread in gaps.items()
                    for part, value in vars(Spread.of(spread)).items()
                    if part in ("p50", "p95", "p99")
                }
            },
        )


def _alone(scale: Scale, subject: Subject, model: GenAIModel, turn: int) -> float:
    prompts = _short_prompts(scale, subject, "alone", turn)
    return statistics.median(_first_token(model, subject, prompt) for prompt in prompts)


def _arrive(
    scale: Scale, subject: Subject, model: GenAIModel, gaps: dict[str, list[float]], turn: int
) -> float:
    """Send short requests, one after the other, while a long answer is written."""
    answer = _LongAnswer()
    prompt = subject.prompts.text(LONG_PROMPT, "long", turn)
    length = subject.length(scale.pick(LONG_ANSWER, 2000))  # the demo model writes fast
    writer = threading.Thread(target=answer.read, args=(model, prompt, length))
    writer.start()
    between = scale.pick(ARRIVAL_TOKENS, 8)
    times: list[float] = []
    for short in _short_prompts(scale, subject, "beside", turn):
        start = len(answer.times)
        if not answer.wait(start + between):
            break
        undisturbed = answer.gaps[start:]
        start = len(answer.times)
        seconds = _first_token(model, subject, short)
        if answer.over.is_set():
            break
        times.append(seconds)
        if turn > WARM_UP:
            gaps["alone"] += undisturbed
            gaps["beside"] += answer.gaps[start:]
    answer.enough.set()
    writer.join()
    if not times:
        raise ValueError("The long answer was over before a short one had begun.")
    return statistics.median(times)


def _short_prompts(scale: Scale, subject: Subject, kind: str, turn: int) -> list[str]:
    count = 1 if turn == WARM_UP else scale.pick(ARRIVALS, 2)
    return [subject.prompts.text(SHORT_PROMPT, kind, turn, number) for number in range(count)]


def _first_token(model: GenAIModel, subject: Subject, prompt: str) -> float:
    return _first_text(lambda: model.stream_complete(prompt, **subject.length(SHORT_ANSWER)))


def _first_text(send: Callable[[], Iterable[dict[str, Any]]]) -> float:
    """Measure the seconds from sending a request to its first text; read the rest of it too."""
    start = time.perf_counter()
    first = 0.0
    for chunk in send():
        parts = [choice.get("delta") or choice for choice in chunk["choices"]]
        if not first and any(part.get("text") or part.get("content") for part in parts):
            first = time.perf_counter() - start
    return first


def second_turn(scale: Scale) -> Iterator[Row]:
    """Compare the first token of a second turn with that of the same length, never seen before.

    A second turn holds the first one's answer, as the model wrote it. These models write at random,
    so that its text is encoded to other ids than those that were generated: it is computed again.
    It is short here for that reason.
    """
    subject = scale.wide()[0]
    for loop in LOOPS:
        with subject.native(loop) as model:
            results = interleaved(
                {
                    "warm": partial(_warm, scale, subject, model),
                    "cold": partial(_cold, scale, subject, model),
                },
                scale.pick(REPEATS, 1),
            )
        yield ratio_row(
            "second-turn",
            f"`{loop}`, {subject.name}",
            Side("first token, second turn", "s", results["warm"]),
            Side("first token, cold", "s", results["cold"]),
        )


def _cold(scale: Scale, subject: Subject, model: GenAIModel, turn: int) -> float:
    first = _question(scale, subject, "cold", turn)
    answer = subject.prompts.text(FIRST_ANSWER, "answer", turn)
    return _turn(subject, model, _second(subject, first, answer, turn))


def _warm(scale: Scale, subject: Subject, model: GenAIModel, turn: int) -> float:
    first = _question(scale, subject, "warm", turn)
    answer = model.chat(first, **subject.length(FIRST_ANSWER))
    text = answer["choices"][0]["message"]["content"]
    return _turn(subject, model, _second(subject, first, text, turn))


def _question(scale: Scale, subject: Subject, *seed: object) -> list[dict[str, Any]]:
    tokens = scale.pick(HISTORY, 200) - FIRST_ANSWER
    return [{"role": "user", "content": subject.prompts.text(tokens, *seed)}]


def _second(
    subject: Subject, first: list[dict[str, Any]], answer: str, turn: int
) -> list[dict[str, Any]]:
    question = subject.prompts.text(QUESTION, "second", turn)
    return [
        *first,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]


def _turn(subject: Subject, model: GenAIModel, messages: list[dict[str, Any]]) -> float:
    return _first_text(lambda: model.stream_chat(messages, **subject.length(SHORT_ANSWER)))
