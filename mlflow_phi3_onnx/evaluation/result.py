"""What a comparison found, prompt by prompt and over all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_phi3_onnx.model.tokens import perplexity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.evaluation.side import Prompt, Scores, Side

__all__ = ["Comparison", "PromptComparison", "Run", "compare_runs"]

# What pandas calls the types of a row's fields. What may be missing stays None, or becomes NA.
_DTYPES = {"int": "Int64", "int | None": "Int64", "float": "float64"}


@dataclass(frozen=True)
class Run:
    """What one model made of one prompt.

    Attributes:
        answer: The ids of its greedy answer, the one that ended it included.
        seconds: How long that took, the prompt included.
        scores: How likely it finds the prompt's own tokens.
    """

    answer: Sequence[int]
    seconds: float
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class PromptComparison:
    """One prompt's comparison: a row of the table.

    Attributes:
        prompt: The prompt, its messages or its token ids.
        prompt_tokens: How many tokens it has.
        answer_a: The greedy answer of ``model_a``, control tokens included.
        answer_b: That of ``model_b``.
        tokens_a: How many tokens ``model_a`` answered, the one that ended it included.
        tokens_b: How many ``model_b`` answered.
        first_difference: The position in the answers, from 0, of the first token that differs; None
            where the answers are identical.
        token_a: The text of the token of ``model_a`` there; None where its answer was over, or the
            answers are identical.
        token_b: That of ``model_b``.
        token_id_a: Its id.
        token_id_b: Its id.
        agreement: The share of tokens before the first difference, of the longer answer's.
        likeliest_agreement: The share of the prompt's tokens, but the first, for which both models
            find the same token likeliest.
        logprob_difference: The mean absolute difference, in nats, between the log-probabilities
            that the models give to the prompt's own tokens, all but the first.
        perplexity_a: The perplexity of the prompt under ``model_a``.
        perplexity_b: That under ``model_b``.
        tokens_per_second_a: Tokens answered by ``model_a``, by the time of the whole call.
        tokens_per_second_b: The same of ``model_b``.
    """

    prompt: Any
    prompt_tokens: int
    answer_a: str
    answer_b: str
    tokens_a: int
    tokens_b: int
    first_difference: int | None
    token_a: str | None
    token_b: str | None
    token_id_a: int | None
    token_id_b: int | None
    agreement: float
    likeliest_agreement: float
    logprob_difference: float
    perplexity_a: float
    perplexity_b: float
    tokens_per_second_a: float
    tokens_per_second_b: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """What :func:`mlflow_phi3_onnx.compare` found. Printed, it is a summary without any text.

    Means and perplexities are over all tokens of all prompts, not over the prompts.

    Attributes:
        model_a: What the first model is, in a few words.
        model_b: What the second one is.
        max_tokens: The most tokens of an answer.
        prompts: Each prompt's comparison, in order.
        greedy_agreement: The share of the answers' tokens that come before the first difference.
        identical_answers: The share of prompts with identical answers, token by token.
        likeliest_agreement: The share of the prompts' tokens for which both models find the same
            token likeliest, given the true tokens before it.
        logprob_difference: The mean absolute difference, in nats, between the log-probabilities
            that the models give to the prompts' own tokens, given the true tokens before each.
        perplexity_a: The perplexity of the prompts under ``model_a``.
        perplexity_b: That under ``model_b``.
        perplexity_difference: ``perplexity_b - perplexity_a``.
        tokens_per_second_a: Tokens answered by ``model_a``, one prompt after the other, by the time
            of the whole calls, prompts included.
        tokens_per_second_b: The same of ``model_b``.
        speed_ratio: ``tokens_per_second_b / tokens_per_second_a``.
    """

    model_a: str
    model_b: str
    max_tokens: int
    prompts: tuple[PromptComparison, ...]
    greedy_agreement: float
    identical_answers: float
    likeliest_agreement: float
    logprob_difference: float
    perplexity_a: float
    perplexity_b: float
    perplexity_difference: float
    tokens_per_second_a: float
    tokens_per_second_b: float
    speed_ratio: float

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers over all prompts, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, float)}

    def to_pandas(self) -> pd.DataFrame:
        """Return the table: one row a prompt, with the fields of :class:`PromptComparison`."""
        rows = [asdict(row) for row in self.prompts]
        return pd.DataFrame(
            {
                field.name: pd.Series(
                    [row[field.name] for row in rows], dtype=_DTYPES.get(str(field.type), object)
                )
                for field in fields(PromptComparison)
            }
        )

    def __repr__(self) -> str:
        counted = sum(row.prompt_tokens for row in self.prompts)
        lines = [
            f"{_many(len(self.prompts), 'prompt')} of {counted:,} tokens together;"
            f" answers of at most {_many(self.max_tokens, 'token')}",
            f"  model_a: {self.model_a}",
            f"  model_b: {self.model_b}",
            "",
            f"  {'':<42}{'model_a':>10}{'model_b':>10}",
            f"  {'perplexity of the prompts':<42}{self.perplexity_a:>10.3f}"
            f"{self.perplexity_b:>10.3f}  {self.perplexity_difference:+.3f}",
            f"  {'tokens per second':<42}{self.tokens_per_second_a:>10.1f}"
            f"{self.tokens_per_second_b:>10.1f}  x {self.speed_ratio:.2f}",
            "",
            f"  {'identical answers':<42}{self.identical_answers:>10.1%}",
            f"  {'answered tokens before the first difference':<42}{self.greedy_agreement:>9.1%}",
            f"  {'prompt tokens with the same likeliest':<42}{self.likeliest_agreement:>10.1%}",
            f"  {'mean difference of log-probabilities':<42}{self.logprob_difference:>10.4f}",
        ]
        return "\n".join(lines)


def compare_runs(
    sides: Sequence[Side],
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    runs: Sequence[Sequence[Run]],
    max_tokens: int,
) -> Comparison:
    """Compare what two models made of the same prompts.

    Args:
        sides: The two models.
        prompts: The prompts.
        ids: The token ids of each, at least two.
        runs: For each model, what it made of each prompt.
        max_tokens: The most tokens of an answer.
    """
    pairs = list(zip(*runs, strict=True))
    rows = tuple(
        _compare_prompt(sides, prompt, tokens, pair)
        for prompt, tokens, pair in zip(prompts, ids, pairs, strict=True)
    )
    same = sum(_same_beginning(a.answer, b.answer) for a, b in pairs)
    longest = sum(max(len(a.answer), len(b.answer)) for a, b in pairs)
    a, b = ([value for run in side for value in run.scores.logprobs] for side in runs)
    likeliest = [[token for run in side for token in run.scores.likeliest] for side in runs]
    speeds = [_speed(side) for side in runs]
    perplexities = [perplexity(a), perplexity(b)]
    return Comparison(
        model_a=sides[0].label,
        model_b=sides[1].label,
        max_tokens=max_tokens,
        prompts=rows,
        greedy_agreement=same / longest,
        identical_answers=_share([row.first_difference is None for row in rows]),
        likeliest_agreement=_share([x == y for x, y in zip(*likeliest, strict=True)]),
        logprob_difference=_mean_difference(a, b),
        perplexity_a=perplexities[0],
        perplexity_b=perplexities[1],
        perplexity_difference=perplexities[1] - perplexities[0],
        tokens_per_second_a=speeds[0],
        tokens_per_second_b=speeds[1],
        speed_ratio=speeds[1] / speeds[0],
    )


def _compare_prompt(
    sides: Sequence[Side], prompt: Prompt, ids: Sequence[int], pair: Sequence[Run]
) -> PromptComparison:
    a, b = pair
    place = _same_beginning(a.answer, b.answer)
    longest = max(len(a.answer), len(b.answer))
    token_a, token_id_a = _token_at(sides[0], ids, a.answer, place)
    token_b, token_id_b = _token_at(sides[1], ids, b.answer, place)
    same = [x == y for x, y in zip(a.scores.likeliest, b.scores.likeliest, strict=True)]
    return PromptComparison(
        prompt=prompt if isinstance(prompt, str) else list(prompt),
        prompt_tokens=len(ids),
        answer_a=_text_after(sides[0], ids, a.answer),
        answer_b=_text_after(sides[1], ids, b.answer),
        tokens_a=len(a.answer),
        tokens_b=len(b.answer),
        first_difference=None if place == longest else place,
        token_a=token_a,
        token_b=token_b,
        token_id_a=token_id_a,
        token_id_b=token_id_b,
        agreement=place / longest,
        likeliest_agreement=_share(same),
        logprob_difference=_mean_difference(a.scores.logprobs, b.scores.logprobs),
        perplexity_a=perplexity(a.scores.logprobs),
        perplexity_b=perplexity(b.scores.logprobs),
        tokens_per_second_a=_speed([a]),
        tokens_per_second_b=_speed([b]),
    )


def _same_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens before the first difference."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def _token_at(
    side: Side, ids: Sequence[int], answer: Sequence[int], place: int
) -> tuple[str | None, int | None]:
    """Return text and id of a token of an answer, or None twice where the answer is over."""
    if place == len(answer):
        return None, None
    return _text_after(side, [*ids, *answer[:place]], [answer[place]]), answer[place]


def _text_after(side: Side, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of ids that follow others: a tokenizer may drop a space at a beginning."""
    anchor = [before[-1]]
    return side.decode([*anchor, *ids])[len(side.decode(anchor)) :]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _mean_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


def _speed(runs: Sequence[Run]) -> float:
    return sum(len(run.answer) for run in runs) / math.fsum(run.seconds for run in runs)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
