"""The awaited twins: what they answer is in the tables of doors; here is how they behave."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.engine import inprocess
from tests.support.doors import COUNTED, SPAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "The capital of Spain is"
STORY = [{"role": "user", "content": "Tell me a long story."}]


def test_generate_and_its_stream(model: GenAIModel) -> None:
    async def run() -> None:
        assert await model.agenerate(PROMPT) == model.generate(PROMPT)
        assert await model.agenerate([PROMPT, "Madrid is"]) == model.generate([PROMPT, "Madrid is"])
        pieces = [piece async for piece in model.astream_generate(PROMPT)]
        assert "".join(pieces) == model.generate(PROMPT)
        assert len(pieces) > 1

    asyncio.run(run())


def test_scores_of_given_text(model: GenAIModel) -> None:
    texts = [f"{PROMPT} Madrid.", f"{PROMPT} Paris."]

    async def run() -> None:
        assert await model.aperplexity(texts) == pytest.approx(model.perplexity(texts), rel=0.05)
        alone = await model.aperplexity(texts[0])
        assert alone == pytest.approx(model.perplexity(texts[0]), rel=0.05)
        scores = await model.atoken_logprobs(texts[0], top_logprobs=2)
        expected = model.token_logprobs(texts[0], top_logprobs=2)
        assert [score["token"] for score in scores] == [score["token"] for score in expected]
        assert len(await model.atoken_logprobs(texts)) == 2
        ids = model.tokenize(texts[0])
        assert await model.aperplexity(ids) == pytest.approx(alone, rel=0.05)
        assert len(await model.atoken_logprobs(ids)) == len(ids)
        assert await model.agreedy_tokens(ids[:4], 8) == model.greedy_tokens(ids[:4], 8)
        with pytest.raises(InvalidRequestError, match="top_logprobs"):
            await model.atoken_logprobs(texts, top_logprobs=21)

    asyncio.run(run())


def test_what_is_asked_at_once_is_answered_at_once(model: GenAIModel) -> None:
    countries = ["Spain", "France", "Italy", "Japan"] * 8

    def messages(country: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"What is the capital of {country}?"}]

    async def run() -> list[dict[str, Any]]:
        return await asyncio.gather(*(model.achat(messages(country)) for country in countries))

    alone = {country: model.chat(messages(country))["choices"] for country in set(countries)}
    answers = asyncio.run(run())
    assert [answer["choices"] for answer in answers] == [alone[country] for country in countries]


class Watched(list[dict[str, Any]]):
    """Messages that remember which thread has read them."""

    readers: set[int]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.readers.add(threading.get_ident())
        return super().__iter__()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_event_loop_runs_on_and_parses_nothing(model: GenAIModel, stream: bool) -> None:
    messages = Watched(STORY)
    messages.readers = set()

    async def ask() -> int:
        if not stream:
            return (await model.achat(messages, max_tokens=200))["usage"]["completion_tokens"]
        async for chunk in model.astream_chat(messages, max_tokens=200, **COUNTED):
            if chunk["usage"]:
                return chunk["usage"]["completion_tokens"]
        raise AssertionError

    async def run() -> tuple[int, int]:
        task = asyncio.create_task(ask())
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, task.result()

    turns, tokens = asyncio.run(run())
    assert turns > tokens > 0
    assert messages.readers
    assert threading.get_ident() not in messages.readers


def test_an_error_in_the_middle_of_rows_is_named(model: GenAIModel) -> None:
    async def run() -> None:
        with pytest.raises(InvalidRequestError, match="row 1: prompt must be a string"):
            await model.agenerate(["a", 5])  # type: ignore[list-item] - what is tested

    asyncio.run(run())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that sequences take, as they take them."""
    tokens: list[int] = []
    take = inprocess.SequenceState.take

    def spy(state: inprocess.SequenceState, token: int) -> None:
        tokens.append(token)
        take(state, token)

    monkeypatch.setattr(inprocess.SequenceState, "take", spy)
    return tokens


def settled(model: GenAIModel, tokens: list[int]) -> int:
    """Count tokens when the engine has begun and ended another request."""
    model.generate(PROMPT, max_tokens=1)
    return len(tokens)


@pytest.mark.parametrize("rows", [1, 3])
def test_cancelling_a_task_stops_its_jobs(
    demo: Path, loop: str, computed: list[int], rows: int
) -> None:
    async def run(model: GenAIModel) -> None:
        task = asyncio.create_task(model.agenerate(["Once"] * rows, min_tokens=3000))
        while not computed:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with GenAIModel(demo, model_config={"loop": loop}) as model:
        asyncio.run(run(model))
        assert settled(model, computed) == settled(model, computed) - 1
        assert len(computed) < 3000


def test_cancelling_before_the_engine_has_begun_leaves_nothing_running(
    demo: Path, loop: str, computed: list[int]
) -> None:
    async def run(model: GenAIModel) -> None:
        for turns in range(40):
            task = asyncio.create_task(model.agenerate("Once", min_tokens=3000))
            for _ in range(turns * 20):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with GenAIModel(demo, model_config={"loop": loop}) as model:
        asyncio.run(run(model))
        assert settled(model, computed) == settled(model, computed) - 1
        assert len(computed) < 3000


@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_closing_a_stream_stops_its_job(
    demo: Path, loop: str, computed: list[int], pieces: int
) -> None:
    async def run(model: GenAIModel) -> None:
        stream = model.astream_chat(STORY, min_tokens=3000)
        for _ in range(pieces):
            await anext(stream)
        await stream.aclose()

    with GenAIModel(demo, model_config={"loop": loop}) as model:
        asyncio.run(run(model))
        assert settled(model, computed) == settled(model, computed) - 1
        assert len(computed) < 3000


def test_leaving_a_stream_stops_its_job(demo: Path, loop: str, computed: list[int]) -> None:
    async def run(model: GenAIModel) -> None:
        async for _ in model.astream_generate("Once", min_tokens=3000):
            break

    with GenAIModel(demo, model_config={"loop": loop}) as model:
        asyncio.run(run(model))
        assert settled(model, computed) == settled(model, computed) - 1
        assert len(computed) < 3000


def test_a_grammar_is_compiled_off_the_loop_and_held(model: GenAIModel) -> None:
    async def run() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(model.achat(SPAIN, choice=[city]) for city in ("Madrid", "Zagreb"))
        )

    answers = asyncio.run(run())
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == ["Madrid", "Zagreb"]
