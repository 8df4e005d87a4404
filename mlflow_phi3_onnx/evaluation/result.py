"""What a comparison found, prompt by prompt and over all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_phi3_onnx.model.tokens import perplexity, same_beginning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.evaluation.side import Prompt, Side

__all__ = ["Comparison", "PromptComparison", "Run", "Scores", "compare_runs", "likeness"]

# What pandas calls the types of a row's fields. What may be missing stays None, or becomes NA.
_DTYPES = {"int": "Int64", "int | None": "Int64", "float": "float64"}


@dataclass(frozen=True)
class Scores:
    """How likely one model finds one prompt.

    Attributes:
        logprobs: The log-probabilities of the prompt's own tokens, all but the first.
        most_likely: The ids of the most likely tokens in their places.
    """

    logprobs: Sequence[float]
    most_likely: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Run(Scores):
    """What one model made of one prompt.

    Attributes:
        completion: The ids of its greedy completion, the one that ended it included.
        seconds: How long that took, the prompt included.
    """

    completion: Sequence[int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PromptComparison:
    """One prompt's comparison: a row of the table.

    Attributes:
        prompt: The prompt, its messages or its token ids.
        prompt_tokens: How many tokens it has.
        answer_a: The greedy completion of ``model_a``, control tokens included.
        answer_b: That of ``model_b``.
        tokens_a: How many tokens that of ``model_a`` has, the one that ended it included.
        tokens_b: How many that of ``model_b`` has.
        first_difference: The position in the completions, from 0, of the first token that differs;
            None where they are identical.
        token_a: The text of the token of ``model_a`` there; None where its completion has ended, or
            the two are identical.
        token_b: That of ``model_b``.
        token_id_a: Its id.
        token_id_b: Its id.
        agreement: The share of tokens before the first difference, of the longer completion's.
        likeliest_agreement: The share of the prompt's tokens, but the first, in whose places both
            models have the same most likely token.
        logprob_difference: The mean absolute difference, in nats, between the log-probabilities
            that the models give to the prompt's own tokens, all but the first.
        perplexity_a: The perplexity of the prompt under ``model_a``.
        perplexity_b: That under ``model_b``.
        tokens_per_second_a: Completion tokens of ``model_a``, by the time of the prompt and them.
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
        max_tokens: The most tokens of a completion.
        prompts: Each prompt's comparison, in order.
        greedy_agreement: The share of the completions' tokens before the first difference.
        identical_answers: The share of prompts with identical completions, token by token.
        likeliest_agreement: The share of the prompts' tokens in whose places both models have the
            same most likely token, given the true tokens before it.
        logprob_difference: The mean absolute difference, in nats, between the log-probabilities
            that the models give to the prompts' own tokens, given the true tokens before each.
        perplexity_a: The perplexity of the prompts under ``model_a``.
        perplexity_b: That under ``model_b``.
        perplexity_difference: ``perplexity_b - perplexity_a``.
        tokens_per_second_a: Completion tokens of ``model_a``, one prompt after the other, by the
            time of the prompts and them.
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
        max_tokens: The most tokens of a completion.
    """
    pairs = list(zip(*runs, strict=True))
    rows = tuple(
        _compare_prompt(sides, prompt, tokens, a, b)
        for prompt, tokens, (a, b) in zip(prompts, ids, pairs, strict=True)
    )
    same = sum(same_beginning(a.completion, b.completion) for a, b in pairs)
    measured = _measure(*runs)
    return Comparison(
        model_a=sides[0].label,
        model_b=sides[1].label,
        max_tokens=max_tokens,
        prompts=rows,
        greedy_agreement=same / sum(max(row.tokens_a, row.tokens_b) for row in rows),
        identical_answers=_share([row.first_difference is None for row in rows]),
        perplexity_difference=measured["perplexity_b"] - measured["perplexity_a"],
        speed_ratio=measured["tokens_per_second_b"] / measured["tokens_per_second_a"],
        **measured,
    )


def _compare_prompt(
    sides: Sequence[Side], prompt: Prompt, ids: Sequence[int], a: Run, b: Run
) -> PromptComparison:
    place = same_beginning(a.completion, b.completion)
    longest = max(len(a.completion), len(b.completion))
    token_a, token_id_a = _token_at(sides[0], ids, a.completion, place)
    token_b, token_id_b = _token_at(sides[1], ids, b.completion, place)
    return PromptComparison(
        prompt=prompt if isinstance(prompt, str) else list(prompt),
        prompt_tokens=len(ids),
        answer_a=_text_after(sides[0], ids, a.completion),
        answer_b=_text_after(sides[1], ids, b.completion),
        tokens_a=len(a.completion),
        tokens_b=len(b.completion),
        first_difference=None if place == longest else place,
        token_a=token_a,
        token_b=token_b,
        token_id_a=token_id_a,
        token_id_b=token_id_b,
        agreement=place / longest,
        **_measure([a], [b]),
    )


def _measure(runs_a: Sequence[Run], runs_b: Sequence[Run]) -> dict[str, float]:
    """Measure what a comparison has of each prompt and of all, by the names of its fields."""
    return {
        **likeness(runs_a, runs_b),
        "tokens_per_second_a": _speed(runs_a),
        "tokens_per_second_b": _speed(runs_b),
    }


def likeness(scores_a: Sequence[Scores], scores_b: Sequence[Scores]) -> dict[str, float]:
    """Measure how alike two models are on the same prompts, by the names of a comparison's fields.

    It is over all tokens of all prompts.
    """
    both = (scores_a, scores_b)
    a, b = ([value for one in scores for value in one.logprobs] for scores in both)
    x, y = ([token for one in scores for token in one.most_likely] for scores in both)
    return {
        "likeliest_agreement": _share([i == j for i, j in zip(x, y, strict=True)]),
        "logprob_difference": math.fsum(abs(p - q) for p, q in zip(a, b, strict=True)) / len(a),
        "perplexity_a": perplexity(a),
        "perplexity_b": perplexity(b),
    }


def _token_at(
    side: Side, ids: Sequence[int], completion: Sequence[int], place: int
) -> tuple[str | None, int | None]:
    """Return text and id of a token of a completion, or None twice where it has ended."""
    if place == len(completion):
        return None, None
    token = completion[place]
    return _text_after(side, [*ids, *completion[:place]], [token]), token


def _text_after(side: Side, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of ids that follow others: a tokenizer may drop a space at a beginning."""
    anchor = [before[-1]]
    return side.decode([*anchor, *ids])[len(side.decode(anchor)) :]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _speed(runs: Sequence[Run]) -> float:
    return sum(len(run.completion) for run in runs) / math.fsum(run.seconds for run in runs)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
