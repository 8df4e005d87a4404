"""How tokens are chosen, against plain reference computations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_phi3_onnx import GenAIModel, GenerationError
from mlflow_phi3_onnx.core.request import Sampling
from mlflow_phi3_onnx.engine.sequence.processors import build
from mlflow_phi3_onnx.engine.sequence.sampler import Sampler, log_of_sum, top_k_ids
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.prompt.stop import StopMatcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 5000
PROMPT = np.array([1, 2, 3, 2], dtype=np.int32)


def logits(seed: int = 0, spread: float = 3.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, VOCABULARY).astype(np.float32)


class Choices:
    """Chooses token after token, as a sequence does."""

    def __init__(self, sampling: Sampling, prompt: NDArray[np.int32] = PROMPT) -> None:
        self.processors = build(sampling, prompt, VOCABULARY)
        self.sampler = Sampler(sampling)
        self.tokens: list[int] = []

    def choose(self, values: NDArray[np.float32]) -> int:
        for processor in self.processors:
            processor.apply(values, self.tokens)
        self.tokens.append(self.sampler.choose(values))
        return self.tokens[-1]


def draw(sampling: Sampling, values: NDArray[np.float32], times: int = 4000) -> NDArray[np.int64]:
    sampler = Choices(sampling)
    return np.array([sampler.choose(values.copy()) for _ in range(times)])


def allowed(values: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities that temperature, top_k, top_p and min_p leave, the slow and plain way."""
    scaled = values.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled - scaled.max())
    keep = np.ones(len(values), dtype=bool)
    if sampling.min_p:
        keep &= weights >= sampling.min_p
    if sampling.top_k:
        keep[order[sampling.top_k :]] = False
    weights = np.where(keep, weights, 0.0)
    if sampling.top_p < 1:
        total = np.cumsum(weights[order]) / weights.sum()
        last = int(np.searchsorted(total, sampling.top_p, side="left"))
        weights[order[last + 1 :]] = 0.0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.3),
        Sampling(temperature=2.0, top_k=7),
        Sampling(temperature=1.5, top_k=400),
        Sampling(temperature=1.0, top_p=0.5),
        Sampling(temperature=2.0, top_p=0.99),
        Sampling(temperature=1.5, min_p=0.1),
        Sampling(temperature=1.5, top_k=50, top_p=0.8, min_p=0.02),
    ],
    ids=str,
)
def test_samples_follow_the_distribution(sampling: Sampling) -> None:
    values = logits()
    expected = allowed(values, sampling)
    seen = np.bincount(draw(sampling, values), minlength=VOCABULARY) / 4000
    assert set(np.flatnonzero(seen)) <= set(np.flatnonzero(expected))
    # Total variation distance over the ten likeliest tokens: sampling noise is about 0.02.
    top = np.argsort(-expected)[:10]
    assert np.abs(seen[top] - expected[top]).sum() / 2 < 0.05


def test_equally_likely_tokens_are_drawn_as_far_as_top_p_reaches() -> None:
    drawn = draw(Sampling(temperature=1.0, top_p=0.5, seed=1), np.zeros(600, np.float32), 9000)
    assert set(drawn.tolist()) == set(range(300))


def test_a_seed_repeats_and_another_differs() -> None:
    values = logits()
    first = draw(Sampling(temperature=1.0, seed=5), values, 50)
    assert (first == draw(Sampling(temperature=1.0, seed=5), values, 50)).all()
    assert (first != draw(Sampling(temperature=1.0, seed=6), values, 50)).any()
    assert (first != draw(Sampling(temperature=1.0, seed=-5), values, 50)).any()
    assert (first != draw(Sampling(temperature=1.0), values, 50)).any()


def test_penalties_follow_their_formulas() -> None:
    sampling = Sampling(repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3)
    sampler = Choices(sampling)
    start = np.zeros(VOCABULARY, dtype=np.float32)
    start[7] = 5.0
    assert [sampler.choose(start.copy()) for _ in range(3)] == [7, 7, 7]
    values = logits()
    changed = values.copy()
    sampler.choose(changed)
    expected = values.astype(np.float64)
    for token in (1, 2, 3, 7):
        expected[token] *= 1.5 if expected[token] < 0 else 1 / 1.5
    expected[7] -= 0.4 + 0.3 * 3
    np.testing.assert_allclose(changed, expected, rtol=1e-5)


@pytest.mark.parametrize("tiny", [5e-324, 1e-46, 1e-45, 1e-38])
def test_what_float32_takes_for_nothing_is_no_error(tiny: float) -> None:
    values = logits()
    values[[1, 2, 77]] = [0.0, -np.inf, 1.0]
    sampling = Sampling(repetition_penalty=tiny, temperature=0)
    assert Choices(sampling, np.array([1, 2, 77], dtype=np.int32)).choose(values.copy()) == 77
    assert np.isneginf(values[2])
    chosen = draw(Sampling(temperature=tiny, seed=1), logits(), 5)
    assert set(chosen.tolist()) == {int(logits().argmax())}


def test_no_repeated_ngrams() -> None:
    sampler = Choices(Sampling(no_repeat_ngram_size=2))
    wants_two = np.zeros(VOCABULARY, dtype=np.float32)
    wants_two[[2, 3, 9]] = [3.0, 2.0, 1.0]
    # The prompt ends with 2 and holds "2 3": 3 is banned, 2 is not. "2 2" is banned the next time.
    assert sampler.choose(wants_two.copy()) == 2
    assert sampler.choose(wants_two.copy()) == 9


@pytest.mark.parametrize(
    ("size", "prompt", "expected"),
    [(2, [2], 2), (2, [2, 2], 9), (3, [2, 2], 2), (3, [2, 2, 2], 9), (1, [9], 2), (1, [2], 9)],
)
def test_an_ngram_is_banned_as_soon_as_it_is_there(
    size: int, prompt: list[int], expected: int
) -> None:
    wants_two = np.zeros(VOCABULARY, dtype=np.float32)
    wants_two[[2, 9]] = [3.0, 2.0]
    sampling = Sampling(no_repeat_ngram_size=size)
    assert Choices(sampling, np.array(prompt, dtype=np.int32)).choose(wants_two) == expected


def test_logits_that_are_not_numbers_are_an_error() -> None:
    sampler = Choices(Sampling())
    with pytest.raises(GenerationError, match="not finite"):
        sampler.choose(np.full(VOCABULARY, np.nan, dtype=np.float32))
    with pytest.raises(GenerationError, match="not finite"):
        sampler.choose(np.full(VOCABULARY, -np.inf, dtype=np.float32))


def test_the_logarithm_of_a_sum() -> None:
    values = logits(spread=30.0)
    exact = values.astype(np.longdouble)
    expected = float(exact.max() + np.log(np.exp(exact - exact.max()).sum()))
    assert log_of_sum(values) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [1, 5, VOCABULARY - 1, VOCABULARY, 2 * VOCABULARY])
def test_the_likeliest_are_in_order_and_equal_ones_by_id(count: int) -> None:
    values = np.round(logits(spread=2.0))
    values[3:6] = -np.inf
    expected = sorted(range(VOCABULARY), key=lambda i: (-values[i], i))
    found = top_k_ids(values, count).tolist()
    assert found == [i for i in expected if np.isfinite(values[i]) or i in found][:count]
    assert len(found) >= min(count, VOCABULARY - 3)


def settle(search: dict[str, Any], **fields: Any) -> Sampling:
    config = fields.pop("config", {})
    asked = parse_request(
        {"prompt": "x", **fields}, "text-generation", model_defaults=search, config=config
    )
    return asked.options.sampling


GREEDY = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
MICROSOFT = {"do_sample": True, "temperature": 1.0, "top_k": 1, "top_p": 1.0}
SAMPLES = {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9}


@pytest.mark.parametrize(
    ("search", "fields", "temperature", "top_k", "top_p"),
    [
        (GREEDY, {}, 0.0, 50, 1.0),
        (GREEDY, {"seed": 1}, 0.0, 50, 1.0),
        (GREEDY, {"temperature": 0.7}, 0.7, 50, 1.0),
        (GREEDY, {"top_p": 0.5}, 1.0, 50, 0.5),
        (GREEDY, {"do_sample": True}, 1.0, 50, 1.0),
        (GREEDY, {"config": {"temperature": 0.2}}, 0.2, 50, 1.0),
        (GREEDY, {"config": {"temperature": 0.2}, "temperature": 0}, 0.0, 50, 1.0),
        (GREEDY, {"config": {"do_sample": False}, "temperature": 0.5}, 0.5, 50, 1.0),
        (GREEDY, {"config": {"temperature": 0.2}, "do_sample": False}, 0.0, 50, 1.0),
        (MICROSOFT, {}, 0.0, 0, 1.0),
        (MICROSOFT, {"temperature": 0.7}, 0.7, 0, 1.0),
        (MICROSOFT, {"temperature": 0.7, "top_k": 1}, 0.7, 1, 1.0),
        (SAMPLES, {}, 0.6, 40, 0.9),
        (SAMPLES, {"top_k": -1}, 0.6, 0, 0.9),
        (SAMPLES, {"temperature": 0}, 0.0, 40, 0.9),
        ({}, {}, 0.0, 0, 1.0),
    ],
)
def test_which_defaults_hold(
    search: dict[str, Any], fields: dict[str, Any], temperature: float, top_k: int, top_p: float
) -> None:
    sampling = settle(search, **fields)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (temperature, top_k, top_p)


@pytest.mark.parametrize(
    ("config", "params", "row", "limits"),
    [
        ({"max_tokens": 5}, {}, {}, (5, None, False)),
        ({"max_tokens": 5}, {"max_tokens": 6}, {}, (6, None, True)),
        ({"max_tokens": 5}, {"max_tokens": 6}, {"max_tokens": 7}, (7, None, True)),
        ({"max_tokens": 5}, {"max_length": 6}, {}, (None, 6, True)),
        ({"max_length": 5}, {}, {"max_completion_tokens": 6}, (6, None, True)),
        ({"max_length": 5}, {}, {"max_tokens": 6, "max_length": 9}, (6, 9, True)),
    ],
)
def test_a_limit_replaces_every_limit_below_it(
    config: dict[str, Any], params: dict[str, Any], row: dict[str, Any], limits: Any
) -> None:
    asked = parse_request({"prompt": "x", **row}, "text-generation", params=params, config=config)
    options = asked.options
    assert (options.max_tokens, options.max_length, options.strict_limit) == limits


PIECES = st.lists(st.text(alphabet="abc", max_size=4), max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=400)
@given(PIECES, STOPS)
def test_stop_sequences_are_cut_however_the_text_is_split(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    found = [text.find(stop) for stop in stops if stop in text]
    matcher = StopMatcher(tuple(stops))
    passed = ""
    for piece in pieces:
        passed += matcher.add(piece)
        if matcher.stopped:
            break
    passed += matcher.flush()
    assert matcher.stopped == bool(found)
    if not found:
        assert passed == text
    else:
        # A stop that is complete earlier in the stream wins over one that starts earlier.
        assert text.startswith(passed)
        assert not any(stop in passed for stop in stops)
        assert any(text[len(passed) :].startswith(stop) for stop in stops)


def test_sampled_rows_of_a_batch_are_what_each_is_alone(model: GenAIModel) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Tell me something about {word}"}],
            "temperature": 1.5,
            "seed": seed,
            "max_tokens": 5 + seed,
            "top_k": 20 + seed,
        }
        for seed, word in enumerate(["tea", "the old sea", "a", "mountains of the moon", "x y"])
    ]
    together = model.run("llm/v1/chat", rows)
    alone = [model.run("llm/v1/chat", [row])[0] for row in rows]
    assert [r["choices"] for r in together] == [r["choices"] for r in alone]
    counted = [[r["usage"]["completion_tokens"] for r in rows] for rows in (together, alone)]
    assert counted[0] == counted[1]
