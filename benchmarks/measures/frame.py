"""A data frame of many rows, against the ways to score one by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import LOOPS, Scale, Subject, tokens_of
from benchmarks.timing import timed
from mlflow_phi3_onnx.evaluation.load.turns import WARM_UP, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.raw import RawModel

__all__ = ["frame_throughput"]

PROMPT_TOKENS = (8, 48)
ANSWER_TOKENS = (8, 16, 24, 32, 48, 64)
BATCH_SIZES = (4, 8, 16, 32)
LATER_LOOPS = ("slots",)
"""What is measured of a second model: the order of the loops is the same there."""
REPEATS = 3


@dataclass(frozen=True)
class _Work:
    """Prompts, and how many tokens are wanted for each."""

    prompts: list[str]
    tokens: list[int]

    @property
    def total(self) -> int:
        return sum(self.tokens)


def frame_throughput(scale: Scale) -> Iterator[Row]:
    """Compare the throughput of `predict` over a frame with that of raw loops.

    One row at a time with onnxruntime-genai's defaults is what a wrapper does that was written by
    its examples; batches of one size, rows of like prompts together, are the most that its
    generator gives. Both know each row's `max_tokens`, as `predict` does; a fixed batch runs until
    its longest answer.
    """
    size = 0
    for number, subject in enumerate(scale.wide()):
        raw = subject.raw_with_our_threads()
        details: dict[str, Any] = {}
        if number == 0:
            work = _work(scale, subject, 0)
            tried = {size: _batches(raw, size, work) for size in scale.pick(BATCH_SIZES, (4, 8))}
            size = max(tried, key=tried.__getitem__)
            alone = _one_at_a_time(raw.answer, _half(work, 0))
            details = {"batch_sizes": tried, "one_at_a_time_with_our_threads": alone}
        loops = LOOPS if number == 0 else LATER_LOOPS
        speeds = _speeds(scale, subject, raw, size, loops, defaults=number == 0)
        for loop in loops:
            ours = Side("predict of a frame", "tokens/s", speeds[loop])
            variant = f"`{loop}`, {subject.name}"
            if "defaults" in speeds:
                one = Side("one at a time, defaults", "tokens/s", speeds["defaults"])
                yield ratio_row("frame-defaults", variant, ours, one, details)
            batch = Side(f"batches of {size}", "tokens/s", speeds["batch"])
            yield ratio_row("frame-batch", variant, ours, batch, details)


def _speeds(
    scale: Scale,
    subject: Subject,
    raw: RawModel,
    size: int,
    loops: tuple[str, ...],
    *,
    defaults: bool,
) -> dict[str, list[float]]:
    """Let every side work in turn, and return its tokens per second."""
    with subject.pyfuncs("llm/v1/completions") as pyfuncs:
        runs = {loop: partial(_predict, pyfuncs[loop], subject) for loop in loops}
        runs["batch"] = partial(_batches, raw, size)
        sides = {name: _turns(scale, subject, run) for name, run in runs.items()}
        if defaults:
            answer = subject.raw(None).answer_with_defaults
            # Half of the rows, for it is slow, and what it does in a second is the same.
            sides["defaults"] = lambda turn: _one_at_a_time(
                answer, _half(_work(scale, subject, turn), turn)
            )
        return interleaved(sides, scale.pick(REPEATS, 1))


def _half(work: _Work, turn: int) -> _Work:
    """Take every second row: the even ones in one turn, the odd ones in the next."""
    return _Work(work.prompts[turn % 2 :: 2], work.tokens[turn % 2 :: 2])


def _turns(scale: Scale, subject: Subject, run: Callable[[_Work], float]) -> Callable[[int], float]:
    return lambda turn: run(_work(scale, subject, turn))


def _work(scale: Scale, subject: Subject, turn: int) -> _Work:
    """Make the rows of a turn; lengths are drawn, and their sum is the same for every turn."""
    rows = 4 if turn == WARM_UP else scale.pick(32, 8)
    rng = random.Random("lengths")
    lengths = [rng.randint(*PROMPT_TOKENS) for _ in range(rows)]
    prompts = [
        subject.prompts.text(length, "frame", turn, row) for row, length in enumerate(lengths)
    ]
    longest = scale.pick(max(ANSWER_TOKENS), 16)
    return _Work(prompts, [min(rng.choice(ANSWER_TOKENS), longest) for _ in range(rows)])


def _predict(model: Any, subject: Subject, work: _Work) -> float:
    lengths = [subject.length(count) for count in work.tokens]
    table = pd.DataFrame({"prompt": work.prompts, **_columns(lengths)})
    answers: list[Any] = []
    seconds = timed(lambda: answers.extend(model.predict(table)))
    if tokens_of(answers) != work.total:
        raise ValueError(f"The answers have {tokens_of(answers)} tokens, not {work.total}.")
    return work.total / seconds


def _columns(rows: list[dict[str, int]]) -> dict[str, list[int]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _one_at_a_time(answer: Callable[[str, int], str], work: _Work) -> float:
    def run() -> None:
        for prompt, count in zip(work.prompts, work.tokens, strict=True):
            answer(prompt, count)

    return work.total / timed(run)


def _batches(raw: RawModel, size: int, work: _Work) -> float:
    order = sorted(range(len(work.prompts)), key=lambda row: len(work.prompts[row].split()))

    def run() -> None:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            raw.batch([work.prompts[row] for row in rows], [work.tokens[row] for row in rows])

    return work.total / timed(run)
