"""What the package adds to a loop that calls onnxruntime-genai itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import LOOPS, Scale, Subject, tokens_of
from benchmarks.timing import timed
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_phi3_onnx.core.tasks import Task

    _Row = Callable[[int], dict[str, Any]]

__all__ = ["predict", "tokens"]

PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
SHORT_PROMPT = 16
LONG_ANSWER = 192
CANDIDATES = 2000

SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 1000}
EVERY_FEATURE: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 100,
    "min_p": 0.01,
    "seed": 1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {str(token): 1.0 for token in range(500, 516)},
    "logprobs": True,
    "top_logprobs": 5,
    "stop": ["\n\n###", "<<END>>", "Question:", "\u2603\u2603"],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "texts", "schema": SCHEMA, "strict": True},
    },
}


def predict(scale: Scale) -> Iterator[Row]:
    """Compare one row's `predict` with the raw loop, with the same threads."""
    count = scale.pick(ANSWER_TOKENS, 8)
    for subject in scale.wide():
        prompt = partial(subject.prompts.text, PROMPT_TOKENS, "predict")
        row = partial(_completion, prompt, subject.length(count))
        turns = scale.pick(8, 1)
        results = _beside_raw(subject, "llm/v1/completions", prompt, row, count, turns)
        for loop in LOOPS:
            yield ratio_row(
                "predict",
                f"`{loop}`, {subject.name}",
                Side("predict", "s", results[loop]),
                Side("raw loop", "s", results["raw"]),
            )


def tokens(scale: Scale) -> Iterator[Row]:
    """Measure the time per token beyond the raw loop's, on models that cost little themselves."""
    count = scale.pick(LONG_ANSWER, 16)
    demo, small = Subject("demo"), scale.small()
    long = _long_prompts(demo, count)
    yield from _overhead(scale, "plain-token", demo, lambda turn: long[turn % len(long)], count)
    for target in scale.pick(("plain-token", "featured-token"), ("featured-token",)):
        prompt = partial(small.prompts.text, SHORT_PROMPT, target)
        yield from _overhead(scale, target, small, prompt, count)


def _overhead(
    scale: Scale, target: str, subject: Subject, prompt: Callable[[int], str], count: int
) -> Iterator[Row]:
    """Compare with the raw loop's plain greedy answers.

    Plain answers have no option but their length, so that a loop may take its fast path.
    """
    task, row = "llm/v1/completions", partial(_completion, prompt, {"max_tokens": count})
    if target == "featured-token":
        task, row = "llm/v1/chat", partial(_featured_chat, prompt, count)
    results = _beside_raw(subject, task, prompt, row, count, scale.pick(16, 1) * scale.repeats)
    micro = {name: [1e6 * one / count for one in results[name]] for name in results}
    for loop in LOOPS:
        yield Row(
            target,
            f"`{loop}`, {subject.name}",
            Side("predict", "µs/token", micro[loop]),
            Side("raw loop", "µs/token", micro["raw"]),
            [ours - raw for ours, raw in zip(micro[loop], micro["raw"], strict=True)],
        )


def _beside_raw(
    subject: Subject,
    task: Task,
    prompt: Callable[[int], str],
    row: _Row,
    count: int,
    turns: int,
) -> dict[str, list[float]]:
    """Time one row with each loop, and the raw loop, by turns."""
    raw = subject.raw_with_our_threads()
    with subject.pyfuncs(task) as pyfuncs:
        sides: dict[str, Callable[[int], float]] = {
            loop: partial(_predict, model, row, count) for loop, model in pyfuncs.items()
        }
        sides["raw"] = lambda turn: timed(lambda: raw.answer(prompt(turn), count))
        return interleaved(sides, turns)


def _predict(model: Any, row: _Row, count: int, turn: int) -> float:
    answers: list[Any] = []
    fields = row(turn)
    seconds = timed(lambda: answers.extend(model.predict(fields)))
    if tokens_of(answers) != count:
        raise ValueError(f"The answer has {tokens_of(answers)} tokens, not {count}.")
    return seconds


def _completion(prompt: Callable[[int], str], length: dict[str, int], turn: int) -> dict[str, Any]:
    return {"prompt": prompt(turn), **length}


def _featured_chat(prompt: Callable[[int], str], count: int, turn: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt(turn)}]
    return {"messages": messages, **EVERY_FEATURE, "max_tokens": count}


def _long_prompts(subject: Subject, count: int) -> list[str]:
    """Find prompts that the demo model answers at length of its own accord."""
    found: list[str] = []
    with subject.native("genai") as model:
        for number in range(CANDIDATES):
            prompt = subject.prompts.text(SHORT_PROMPT, "long", number)
            answer = model.complete(prompt, max_tokens=count)
            if answer["usage"]["completion_tokens"] == count:
                found.append(prompt)
            if len(found) == 8:
                return found
    raise ValueError(f"The demo model gave no {count} tokens to enough prompts.")
