"""Guessing ahead: it changes how many steps an answer takes, and never the answer."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_phi3_onnx.core.request import Grammar, Options, Sampling
from mlflow_phi3_onnx.engine import inprocess
from mlflow_phi3_onnx.engine.sequence.prompt_lookup import Drafter
from tests.support.engines import submit

if TYPE_CHECKING:
    from mlflow_phi3_onnx import GenAIModel
    from mlflow_phi3_onnx.core.request import Completion

COUNT = "<|user|>\nCount from 1 to 20<|end|>\n<|assistant|>\n"

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"sampling": Sampling(temperature=1.3, seed=5)},
    "penalties": {"sampling": Sampling(repetition_penalty=1.3, presence_penalty=0.5)},
    "logprobs": {"top_logprobs": 3},
    "stop": {"stop": ("7",)},
    "min_tokens": {"min_tokens": 12},
    "grammar": {"grammar": Grammar("regex", r"( ?[0-9],? ?){3,20}")},
}


def answers(model: GenAIModel, max_tokens: int, **options: Any) -> list[Completion]:
    prompt = model._tokenizer.encode(COUNT)
    jobs = [
        (prompt, max_tokens, Options(**options)),
        (prompt, max_tokens, Options(**options, draft_tokens=6)),
        (prompt, max_tokens, Options(**options, draft_tokens=6, prediction="1, 2, 3, 4, 5, 6")),
    ]
    # One after the other: drafts are for a row that is decoded alone.
    return [submit(model, job)[0].result() for job in jobs]


@pytest.mark.parametrize("max_tokens", [1, 2, 9, 80])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_answer_is_the_same(
    model: GenAIModel, options: dict[str, Any], max_tokens: int
) -> None:
    if options.get("min_tokens", 0) > max_tokens:
        max_tokens = options["min_tokens"]
    plain, *drafted = answers(model, max_tokens, **options)
    for completion in drafted:
        assert (completion.text, completion.tokens) == (plain.text, plain.tokens)
        assert completion.finish_reason == plain.finish_reason
        assert 0 <= completion.accepted_tokens <= completion.drafted_tokens
        assert completion.accepted_tokens <= completion.tokens
        if options.get("top_logprobs"):
            for one, other in zip(plain.logprobs, completion.logprobs, strict=True):
                assert one.token_id == other.token_id
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_right_prediction_is_accepted(model: GenAIModel) -> None:
    prompt = model._tokenizer.encode(COUNT)
    told = submit(model, (prompt, 60, Options()))[0].result()
    options = Options(draft_tokens=6, prediction=told.text)
    (again,) = (ticket.result() for ticket in submit(model, (prompt, 60, options)))
    assert again.text == told.text
    assert again.accepted_tokens > told.tokens / 2


@pytest.mark.parametrize("max_tokens", range(4, 12))
def test_no_more_is_guessed_than_may_follow(
    model: GenAIModel, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    """Each step chooses one token by itself, and that may be the last one."""
    guessed: list[tuple[int, int]] = []
    advance = inprocess.SequenceState.advance

    def watched(state: inprocess.SequenceState, logits: Any, draft: Any = ()) -> None:
        guessed.append((len(draft), state.remaining - 1))
        advance(state, logits, draft)

    prompt = model._tokenizer.encode(COUNT)
    told = submit(model, (prompt, 60, Options()))[0].result()
    options = Options(draft_tokens=16, prediction=told.text)
    monkeypatch.setattr(inprocess.SequenceState, "advance", watched)
    assert submit(model, (prompt, max_tokens, options))[0].result().tokens == max_tokens
    assert all(count <= most for count, most in guessed)
    assert any(count == most > 0 for count, most in guessed)


def test_rows_beside_others_are_the_same_too(model: GenAIModel) -> None:
    prompt = model._tokenizer.encode(COUNT)
    jobs = [(prompt, 40, Options(draft_tokens=i % 5, n=1)) for i in range(8)]
    results = [ticket.result() for ticket in submit(model, *jobs)]
    assert len({result.text for result in results}) == 1


TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(source=TOKENS, prompt=TOKENS, answer=TOKENS, most=st.integers(1, 6))
def test_a_guess_is_what_followed_the_last_tokens_before(
    source: list[int], prompt: list[int], answer: list[int], most: int
) -> None:
    drafter = Drafter([source, prompt], most)
    drafter.extend(answer)
    guess = drafter.draft(most)
    assert len(guess) <= most
    if guess:
        run = (prompt + answer)[-2:]
        seen = source + prompt + answer
        followed = [
            seen[i + 2 : i + 2 + len(guess)] for i in range(len(seen)) if seen[i : i + 2] == run
        ]
        assert guess in followed


def test_guesses_get_shorter_when_they_are_wrong_and_longer_when_they_are_right() -> None:
    drafter = Drafter([[1, 2, 3, 4, 5, 6, 7, 8, 1, 2]], 4)

    def lengths(accepted: int, times: int) -> list[int]:
        seen: list[int] = []
        for _ in range(times):
            seen.append(len(drafter.draft(9)))
            drafter.adapt(seen[-1], min(accepted, seen[-1]))
        return seen

    assert lengths(accepted=0, times=6) == [4, 3, 2, 1, 1, 1]
    assert lengths(accepted=9, times=4) == [1, 3, 4, 4]


def test_a_guess_of_nothing() -> None:
    assert Drafter([[1, 2, 3, 1, 2]], 4).draft(0) == []
    assert Drafter([[1, 2, 3, 1, 2]], 4).draft(2) == [3, 1]
    assert Drafter([[1, 2, 3, 1, 3]], 4).draft(2) == []
