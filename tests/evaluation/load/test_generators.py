"""Who sends requests when."""

from __future__ import annotations

import statistics

import pytest

from mlflow_phi3_onnx.errors import GenerationTimeoutError
from mlflow_phi3_onnx.evaluation.load.generators import arrivals, closed_loop, open_loop
from mlflow_phi3_onnx.evaluation.load.side import WORDS, words
from tests.support.loads import ScriptedSide


def test_a_closed_loop_has_as_many_requests_under_way_as_callers() -> None:
    side, done = ScriptedSide(parties=3), [0]

    def count() -> None:
        done[0] += 1

    prompts = [f"prompt {number}" for number in range(9)]
    found = closed_loop(side, prompts, 5, callers=3, done=count)
    assert sorted(side.prompts, key=str) == prompts
    assert (side.most, len(found), done) == (3, 9, [9])
    for one in found:
        assert one.sent <= one.chunks[0] <= one.chunks[-1] <= one.ended
        assert (len(one.chunks), one.completion_tokens, one.prompt_tokens) == (5, 5, 7)
        assert one.due == one.sent


def test_a_closed_loop_sends_nothing_when_its_time_is_over() -> None:
    assert closed_loop(ScriptedSide(), ["one"], 1, callers=2, seconds=0) == []
    assert len(closed_loop(ScriptedSide(), ["one"], 1, callers=2, seconds=60)) == 1


def test_an_open_loop_waits_for_nobody() -> None:
    side = ScriptedSide(parties=12)  # none is answered before all are sent
    times = arrivals(1000, 12, None, seed=1)
    found = open_loop(side, [str(number) for number in range(12)], 2, times=times)
    assert side.most == 12
    assert [one.due for one in found] == times
    assert all(one.sent >= one.due for one in found)
    assert {one.error for one in found} == {None}


def test_arrivals_are_those_of_their_seed() -> None:
    times = arrivals(4.0, 2000, None, seed=7)
    assert times == arrivals(4.0, 2000, None, seed=7) != arrivals(4.0, 2000, None, seed=8)
    assert len(times) == 2000
    assert times == sorted(times)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    # Exponential: the standard deviation is the mean.
    assert statistics.mean(gaps) == pytest.approx(1 / 4, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 4, rel=0.1)


def test_arrivals_end_with_their_time() -> None:
    times = arrivals(100.0, 10_000, 2.0, seed=1)
    assert 150 < len(times) < 250
    assert times == [one for one in arrivals(100.0, 10_000, None, seed=1) if one < 2.0]


@pytest.mark.parametrize("error", [GenerationTimeoutError("a secret"), TimeoutError("a secret")])
def test_a_failure_is_known_by_its_kind_alone(error: Exception) -> None:
    (one,) = closed_loop(ScriptedSide(error=error), ["prompt"], 3, callers=1)
    assert one.error == type(error).__name__
    assert one.completion_tokens == 3  # what came before


def test_an_error_of_the_program_is_none_of_a_request() -> None:
    for send in (
        lambda side: closed_loop(side, ["a", "b"], 1, callers=2),
        lambda side: open_loop(side, ["a", "b"], 1, times=[0.0, 0.0]),
    ):
        with pytest.raises(ZeroDivisionError):
            send(ScriptedSide(error=ZeroDivisionError()))


def test_prompts_differ_from_their_first_word_but_for_what_they_share() -> None:
    cold = [words(20, 0, 5, number) for number in range(len(WORDS))]
    assert len({prompt[0] for prompt in cold}) == len(WORDS)
    assert all(len(prompt) == 20 for prompt in cold)
    assert cold == [words(20, 0, 5, number) for number in range(len(WORDS))]
    warm = [words(20, 8, seed, number) for seed in (5, 6) for number in range(3)]
    assert len({tuple(prompt[:8]) for prompt in warm}) == 1
    assert [prompt[8] for prompt in warm] == [*WORDS[:3], *WORDS[:3]]
    assert len({tuple(prompt) for prompt in warm}) == 6
    assert words(3, 3, 1, 1) == warm[0][:3]
