"""The doors that a request can come through, each as a function from its fields to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import pytest
from mlflow.exceptions import MlflowException

import mlflow_phi3_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx import GenAIModel
    from mlflow_phi3_onnx.core.tasks import Task

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
CANARY = "canary-3141592"

COUNTED: dict[str, Any] = {"stream_options": {"include_usage": True}}
"""Asks a stream to end with its usage."""

REPORTED: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}


class Answer(NamedTuple):
    """What every door of a chat answers with.

    The log-probabilities are (token, logprob) pairs, where they were asked for.
    """

    text: str
    finish_reason: str
    usage: dict[str, int]
    logprobs: list[tuple[str, float]] | None


Door = Callable[[dict[str, Any]], Any]

DOORS = ["native", "native stream", "async", "async stream", "pyfunc", "pyfunc stream"]
WHOLE = ["native", "async", "pyfunc"]
STREAMS = ["native stream", "async stream", "pyfunc stream"]


ONE_LOOP = pytest.mark.parametrize("loop", ["genai"], indirect=True)
"""For what no loop comes to see."""


class Bad(NamedTuple):
    """A request, and what the error must say."""

    fields: dict[str, Any]
    param: str
    says: str


def bad_id(case: Bad) -> str:
    return f"{case.param}: {case.says}"


def check_error(error: MlflowException, case: Bad) -> None:
    assert isinstance(error, mlflow_phi3_onnx.InvalidRequestError)
    assert case.says in error.message
    assert (error.param or "") == case.param
    assert error.status == 400
    assert CANARY not in error.message
    assert CANARY not in str(error.to_openai())


def refused_everywhere(doors: Iterable[Door], case: Bad) -> None:
    for door in doors:
        with pytest.raises(MlflowException) as caught:
            door(case.fields)
        check_error(caught.value, case)


def saved(demo: Path, folder: Path, task: Task, loop: str) -> Any:
    """Save the demo model and load it as a pyfunc."""
    mlflow_phi3_onnx.save_model(demo, folder, task=task)
    return mlflow.pyfunc.load_model(str(folder), model_config={"loop": loop})


def chat_doors(model: GenAIModel, pyfunc: Any) -> dict[str, Door]:
    """Each door of a chat: it answers with text, finish reason and usage."""
    return {
        "native": lambda fields: whole_chat(model.chat(**fields)),
        "native stream": lambda fields: chat_pieces(model.stream_chat(**COUNTED | fields)),
        "async": lambda fields: whole_chat(asyncio.run(model.achat(**fields))),
        "async stream": lambda fields: chat_pieces(
            gathered(model.astream_chat(**COUNTED | fields))
        ),
        "pyfunc": lambda fields: whole_chat(pyfunc.predict(fields)[0]),
        "pyfunc stream": lambda fields: chat_pieces(pyfunc.predict_stream(COUNTED | fields)),
    }


def text_doors(model: GenAIModel, pyfunc: Any) -> dict[str, Door]:
    """Each door of a completion: it answers with choices and usage."""
    return {
        "native": lambda fields: whole_text(model.complete(**fields)),
        "native stream": lambda fields: text_pieces(model.stream_complete(**COUNTED | fields)),
        "async": lambda fields: whole_text(asyncio.run(model.acomplete(**fields))),
        "async stream": lambda fields: text_pieces(
            gathered(model.astream_complete(**COUNTED | fields))
        ),
        "pyfunc": lambda fields: whole_text(pyfunc.predict(fields)[0]),
        "pyfunc stream": lambda fields: text_pieces(pyfunc.predict_stream(COUNTED | fields)),
    }


def gathered(stream: AsyncGenerator[Any]) -> list[Any]:
    async def run() -> list[Any]:
        return [piece async for piece in stream]

    return asyncio.run(run())


def counts(usage: dict[str, Any]) -> dict[str, int]:
    """The usage without its details, which tell of caches and guesses."""
    return {name: count for name, count in usage.items() if not name.endswith("_details")}


def whole_chat(response: dict[str, Any]) -> Answer:
    choice = response["choices"][0]
    logprobs = pairs(choice["logprobs"]) if "logprobs" in choice else None
    usage = counts(response["usage"])
    return Answer(choice["message"]["content"], choice["finish_reason"], usage, logprobs)


def pairs(logprobs: dict[str, Any]) -> list[tuple[str, float]]:
    return [(entry["token"], entry["logprob"]) for entry in logprobs["content"]]


def chat_pieces(chunks: Iterable[dict[str, Any]]) -> Answer:
    seen = list(chunks)
    first, ending, last = seen[0], seen[-2], seen[-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert ending["choices"][0]["delta"] == {}
    assert last["choices"] == []
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in seen}) == 1
    choices = [chunk["choices"][0] for chunk in seen[:-2]]
    text = "".join(choice["delta"]["content"] for choice in choices)
    reported = [choice["logprobs"] for choice in choices if "logprobs" in choice]
    logprobs = [pair for entries in reported for pair in pairs(entries)] if reported else None
    return Answer(text, ending["choices"][0]["finish_reason"], counts(last["usage"]), logprobs)


def check_same(answer: Answer, reference: Answer) -> None:
    """Check that two answers to a request that reports log-probabilities are the same."""
    assert answer[:3] == reference[:3]
    assert answer.logprobs is not None
    assert reference.logprobs is not None
    assert [token for token, _ in answer.logprobs] == [token for token, _ in reference.logprobs]
    values = [value for _, value in answer.logprobs]
    # The weights are int4, which rounds activations to 8 bits: a last bit that differs can grow,
    # to 0.07 with ONNX Runtime 1.23.
    assert values == pytest.approx([value for _, value in reference.logprobs], abs=0.1)


@contextlib.contextmanager
def crowd(ask: Callable[[dict[str, Any]], object], size: int = 7) -> Generator[None]:
    """Keep other requests running, so many at a time, each of its own kind."""
    over = threading.Event()
    begun = threading.Barrier(size + 1, timeout=60)

    def one(number: int) -> None:
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": "Please wait. " * number + "Who are you?"}],
            "max_tokens": 5 + 6 * number,
            "temperature": number / 4,
        }
        begun.wait()
        while not over.is_set():
            ask(fields)

    with ThreadPoolExecutor(size) as pool:
        others = [pool.submit(one, number) for number in range(size)]
        begun.wait()
        try:
            yield
        finally:
            over.set()
        for other in others:
            other.result()


def whole_text(response: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    assert response["object"] == "text_completion"
    choices = response["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return choices, counts(response["usage"])


def text_pieces(
    chunks: Iterable[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Put a stream's chunks together to what the same request's response has."""
    *seen, last = chunks
    assert last["choices"] == []
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in seen}) == 1
    choices: dict[int, dict[str, Any]] = {}
    for chunk in seen:
        (piece,) = chunk["choices"]
        whole = choices.setdefault(
            piece["index"], {"index": piece["index"], "text": "", "finish_reason": None}
        )
        assert whole["finish_reason"] is None
        whole["text"] += piece["text"]
        whole["finish_reason"] = piece["finish_reason"]
        for name, values in piece.get("logprobs", {}).items():
            whole.setdefault("logprobs", {}).setdefault(name, []).extend(values)
    return [choices[index] for index in sorted(choices)], counts(last["usage"])
