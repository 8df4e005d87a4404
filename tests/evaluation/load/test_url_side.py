"""Servers at a URL: what they refuse, how they fail, and what is made of it."""

from __future__ import annotations

import itertools
import json
import traceback
from typing import Any

import pytest

from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError, SourceUnreachableError
from mlflow_phi3_onnx.evaluation.load.exchange import summarize
from mlflow_phi3_onnx.evaluation.load.generators import closed_loop
from mlflow_phi3_onnx.evaluation.load.url_side import URLSide
from tests.support.http_server import running as serving
from tests.support.loads import scripted_server

USAGE = {"prompt_tokens": 128, "completion_tokens": 3}


def stream(*texts: str, usage: dict[str, int] | None = None, chat: bool = False) -> list[str]:
    parts = [{"delta": {"content": text}} if chat else {"text": text} for text in texts]
    events: list[dict[str, Any]] = [{"choices": [part], "usage": None} for part in parts]
    events += [{"choices": [], "usage": usage}] if usage else []
    return [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]


def open_side(url: str, name: str | None = None) -> URLSide:
    return URLSide(url, name, 60, "model")


def test_a_stream_is_counted_and_its_usage_believed() -> None:
    with scripted_server(lambda *_: (200, stream("", "a", "", "b", usage=USAGE))) as (url, asked):
        side = open_side(url)
        (one,) = closed_loop(side, ["prompt"], 3, callers=1)
        assert (one.error, len(one.chunks)) == (None, 2)  # empty texts are no chunks
        assert (one.prompt_tokens, one.completion_tokens) == (128, 3)
        path, body = asked[-1]
        assert path == "/v1/completions"
        assert body == {
            "model": "first",
            "prompt": "prompt",
            "max_tokens": 3,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        assert side.notes == []
        # The first request had 64 words, and it was told that they are 128 tokens.
        assert len(side.prompt(100, 0, 1, 1).split()) == 50
        assert side.prompt(100, 40, 1, 1).split()[:20] == side.prompt(100, 40, 2, 2).split()[:20]
        assert open_side(url, "second").label.startswith("second at http://127.0.0.1:")


@pytest.mark.parametrize("refused", [("ignore_eos",), ("ignore_eos", "stream_options")])
def test_what_a_server_refuses_is_left_out_and_told(refused: tuple[str, ...]) -> None:
    def answer(_: str, body: dict[str, Any]) -> tuple[int, list[str]]:
        if any(name in body for name in refused):
            return 400, ["{}"]
        return 200, stream("a", "b", usage=USAGE if "stream_options" in body else None)

    with scripted_server(answer) as (url, asked):
        side = open_side(url)
        (one,) = closed_loop(side, ["prompt"], 4, callers=1)
        assert not set(refused) & set(asked[-1][1])
        assert [name for name in refused if not any(name in note for note in side.notes)] == []
        counted = "stream_options" not in refused
        assert one.completion_tokens == (3 if counted else 2)
        assert one.prompt_tokens == (128 if counted else None)
        assert summarize([one]).short == 1
        assert len(side.prompt(100, 0, 1, 1).split()) == (50 if counted else 100)


def test_a_server_without_completions_is_asked_for_chat() -> None:
    def answer(path: str, _: dict[str, Any]) -> tuple[int, list[str]]:
        if path != "/v1/chat/completions":
            return 404, ["{}"]
        return 200, stream("", "a", "b", usage=USAGE, chat=True)

    with scripted_server(answer) as (url, asked):
        side = open_side(url)
        (one,) = closed_loop(side, ["prompt"], 3, callers=1)
        assert (one.error, len(one.chunks)) == (None, 2)
        assert asked[-1][1]["messages"] == [{"role": "user", "content": "prompt"}]
        assert "a chat" in side.notes[0]


CUT = stream("a")[:-1]
FAILURES = {
    "HTTP 429": (429, ["{}"]),
    "HTTP 500": (500, ["no JSON"]),
    "ConnectionError": (200, CUT),
    "error in the stream": (200, [*CUT, 'data: {"error": {"message": "a secret"}}']),
    "broken answer": (200, [*CUT, "data: {oops"]),
    "empty answer": (200, ["data: [DONE]"]),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_under_load_are_counted_by_kind(kind: str) -> None:
    numbers = itertools.count()

    def answer(*_: object) -> tuple[int, list[str]]:
        number = next(numbers)  # the first request is the one before the load
        return FAILURES[kind] if number and number % 3 == 0 else (200, stream("a", usage=USAGE))

    with scripted_server(answer) as (url, _):
        found = summarize(closed_loop(open_side(url), ["prompt"] * 9, 3, callers=1))
    assert found.failures == {kind: 3}
    assert (found.requests, found.failed, found.completion_tokens) == (9, 3, 18)


BROKEN = {
    "no JSON": "{oops",
    "no text": "\xff",
    "no object": "[1]",
    "deep": "[" * 200_000,
    "choices of text": '{"choices": "abc"}',
    "no choice": '{"choices": [null]}',
    "no delta": '{"choices": [{"delta": "x"}]}',
    "a number for a text": '{"choices": [{"text": 7}]}',
    "a list of usage": '{"usage": [1]}',
    "a count of text": '{"usage": {"prompt_tokens": "64"}}',
    "less than none": '{"usage": {"completion_tokens": -2}}',
    "no number": '{"usage": {"completion_tokens": NaN}}',
    "a part of a token": '{"usage": {"prompt_tokens": 1e-300}}',
    "too many": f'{{"usage": {{"completion_tokens": {10**400}}}}}',
}


@pytest.mark.parametrize("event", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_a_failure_and_before_the_load_an_error(event: str) -> None:
    answers = [stream("a", usage=USAGE), [f"data: {event}", *stream("a", usage=USAGE)]]
    with scripted_server(lambda *_: (200, answers.pop(0))) as (url, _):
        (one,) = closed_loop(open_side(url), ["prompt"], 3, callers=1)
        assert one.error == "broken answer"
    with (
        scripted_server(lambda *_: (200, [f"data: {event}"])) as (url, _),
        pytest.raises(GenAIError, match="model: The server's answer is broken: "),
    ):
        open_side(url)


def test_an_error_that_is_null_is_none() -> None:
    lines = ['data: {"error": null, "choices": null}', *stream("a", usage=USAGE)]
    with scripted_server(lambda *_: (200, lines)) as (url, _):
        (one,) = closed_loop(open_side(url), ["prompt"], 3, callers=1)
    assert (one.error, len(one.chunks)) == (None, 1)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "Set OPENAI_API_KEY"), (404, "base URL"), (500, "with HTTP 500")]
)
def test_a_server_that_answers_nothing_is_an_error(status: int, says: str) -> None:
    with (
        scripted_server(lambda *_: (status, ["{}"])) as (url, _),
        pytest.raises(GenAIError, match=says),
    ):
        open_side(url)


def test_where_no_server_is_that_is_told() -> None:
    with scripted_server(lambda *_: (200, stream("a"))) as (url, _):
        pass
    with pytest.raises(SourceUnreachableError, match=r"nothing answers at http://127\.0\.0\.1:"):
        open_side(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http:///v1", "http://a:b@host/v1", "http://host/v1?key=a", "http://host:port/v1"),
        *("http://host/v\xe9", "http://host/a b", "HTTP://host/v1#a"),
    ],
)
def test_a_url_is_a_place_and_no_more(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be a base URL") as refused:
        open_side(url)
    assert url not in refused.value.message


def test_a_key_is_brought_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_API_KEY", "a-key-of-twenty-letters")
    with serving() as served:
        with pytest.raises(GenAIError, match="HTTP 401"):
            open_side(f"{served.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-twenty-letters")
        assert open_side(f"{served.url}/v1").label.startswith("demo at ")


@pytest.mark.parametrize("key", ["a-secret\n", "a-secret\r\nX: y", "a-secr\xe9t\u20ac", "a secret"])
def test_a_key_that_no_header_can_have_is_refused_unseen(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InvalidRequestError, match="OPENAI_API_KEY must be printable") as refused:
        open_side("http://127.0.0.1:9/v1")
    assert "secr" not in "".join(traceback.format_exception(refused.value))


def test_a_host_that_cannot_be_is_not_there() -> None:
    with pytest.raises(SourceUnreachableError):
        open_side("http://a..b/v1")


def test_this_package_s_server_takes_everything() -> None:
    with serving() as served:
        side = open_side(f"{served.url}/v1")
        assert side.notes == []
        prompts = [side.prompt(40, 0, 1, number) for number in range(4)]
        for one in closed_loop(side, prompts, 24, callers=2):
            assert one.error is None
            assert one.completion_tokens == 24
            assert one.prompt_tokens is not None
            assert abs(one.prompt_tokens - 40) < 12
