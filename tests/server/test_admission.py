"""Who is worked on, who waits, who is refused; and how a server ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from mlflow_phi3_onnx.server.admission import LONGEST_ADVICE, Admission
from mlflow_phi3_onnx.server.errors import QueueFullError
from tests.support.doors import SPAIN
from tests.support.http_server import Reply, Running, in_process, running, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STORY = {"messages": SPAIN, "min_tokens": 4000}
SHORT = {"messages": SPAIN, "max_tokens": 8}
MADRID = "The capital of Spain is Madrid."


def test_places_are_given_in_turn_and_given_back() -> None:
    async def scene() -> list[str]:
        admission = Admission(2, 2)
        log: list[str] = []
        doors = {name: asyncio.Event() for name in "abcd"}

        async def visit(name: str) -> None:
            async with admission.place():
                log.append(name)
                await doors[name].wait()

        tasks = {name: asyncio.create_task(visit(name)) for name in "abcd"}
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting, log) == (2, 2, ["a", "b"])
        with pytest.raises(QueueFullError, match="works on 2 requests and 2 wait"):
            await visit("e")
        tasks["c"].cancel()
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting) == (2, 1)
        doors["a"].set()
        await tasks["a"]
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting, log) == (2, 0, ["a", "b", "d"])
        for name in "bd":
            doors[name].set()
            await tasks[name]
        assert admission.running == 0
        return log

    assert asyncio.run(scene()) == ["a", "b", "d"]


def test_a_place_that_was_just_given_to_one_that_goes_is_given_on() -> None:
    async def scene() -> None:
        admission = Admission(1, 2)
        first = admission.place()
        await first.__aenter__()
        entered: list[int] = []

        async def visit(number: int) -> None:
            async with admission.place():
                entered.append(number)

        second, third = (asyncio.create_task(visit(number)) for number in (2, 3))
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # the second has the place, and has not run yet
        second.cancel()
        await asyncio.wait({second, third})
        assert (entered, admission.running, admission.waiting) == ([3], 0, 0)

    asyncio.run(scene())


def test_the_advice_is_from_one_second_to_a_minute() -> None:
    async def advice(seconds: float) -> str:
        admission = Admission(1, 0)
        admission._seconds = seconds  # pyright: ignore[reportPrivateUsage] - what it measures
        async with admission.place():
            with pytest.raises(QueueFullError) as caught:
                await admission.place().__aenter__()
        return caught.value.headers["Retry-After"]

    for seconds, told in ((0.1, 1), (1.0, 1), (1.1, 2), (59.1, 60), (1000, LONGEST_ADVICE)):
        assert asyncio.run(advice(seconds)) == str(told)


def test_what_is_beyond_the_queue_is_refused() -> None:
    with running(max_running=2, max_queue=3) as served:
        stories = [served.send({**STORY, "stream": True}) for _ in range(2)]
        until(lambda: served.metric("num_requests_running") == 2)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(served.chat, SHORT) for _ in range(3)]
            until(lambda: served.metric("num_requests_waiting") == 3)
            for path in ("/v1/chat/completions", "/invocations", "/endpoints/demo/invocations"):
                reply = served.post(path, SHORT)
                assert (reply.status, reply.error["type"]) == (429, "rate_limit_error")
                assert reply.error["code"] == "queue_full"
                assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert served.get("/health").status == served.get("/ready").status == 200
            for story in stories:
                story.close()
            answers = [answer.result() for answer in waiting]
        assert [a.json["choices"][0]["message"]["content"] for a in answers] == [MADRID] * 3
        assert served.metric("num_requests_running") == 0


def test_everything_that_is_taken_is_answered_under_four_times_the_load() -> None:
    with running(max_running=4, max_queue=4) as served, ThreadPoolExecutor(32) as pool:
        for reply in pool.map(lambda _: served.chat(SHORT), range(200)):
            if reply.status == 200:
                assert reply.json["choices"][0]["message"]["content"] == MADRID
            else:
                assert (reply.status, reply.error["code"]) == (429, "queue_full")
        until(lambda: served.metric("num_requests_running") == 0)
        route = "/v1/chat/completions"
        good, refused = (
            served.metric("http_requests_total", route=route, status=status)
            for status in ("200", "429")
        )
        assert (good + refused, refused > 0) == (200, True)
        assert served.metric("request_success_total") == good


def test_the_time_in_the_queue_counts() -> None:
    with running(max_running=1, timeout=0.5) as served:
        with served.send(STORY):
            until(lambda: served.metric("num_requests_running") == 1)
            with served.send(STORY):
                until(lambda: waits_or_is_over(served))
                reply = served.chat(SHORT)
        assert reply.status in (200, 504)  # the story's time may be over first
        until(lambda: served.metric("num_requests_running") == 0)
        assert served.metric("http_requests_total", status="504") >= 1


def waits_or_is_over(served: Running) -> bool:
    over = served.metric("http_requests_total", status="504")
    return served.metric("num_requests_waiting") == 1 or over >= 1


def threaded(call: Callable[[], Reply]) -> tuple[threading.Thread, list[Reply]]:
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(call()))
    thread.start()
    return thread, replies


def test_sigterm_lets_running_requests_finish(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with in_process("--grace-period", "60", log=log) as (served, process):
        fields = {"messages": SPAIN, "min_tokens": 400, "max_tokens": 400}
        thread, replies = threaded(lambda: served.chat(fields))
        other, streams = threaded(lambda: served.chat({**fields, "stream": True}))
        until(lambda: served.metric("num_requests_running") == 2)
        assert served.get("/ready").status == 200
        process.send_signal(signal.SIGTERM)
        until(lambda: served.get("/ready").status == 503)
        assert served.get("/health").status == 200
        reply = served.chat(SHORT)
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
        assert int(reply.headers["retry-after"]) > 0
        assert reply.headers["connection"] == "close"
        thread.join()
        other.join()
        assert replies[0].json["usage"]["completion_tokens"] == 400
        assert streams[0].events[-1] == "[DONE]"
        assert '"finish_reason":"length"' in streams[0].events[-2]
        assert process.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "Draining: 2 requests are running." in [line["message"] for line in lines]


def test_what_does_not_finish_within_the_grace_period_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(grace_period=0.2, model_config={"loop": "genai"}) as served:
        stories = [threaded(lambda: served.chat(STORY)) for _ in range(2)]
        streams = [threaded(lambda: served.chat({**STORY, "stream": True}))]
        until(lambda: served.metric("num_requests_running") == 3)
        served.server.handle_exit(signal.SIGINT, None)
        for thread, replies in stories:
            thread.join()
            assert (replies[0].status, replies[0].error["code"]) == (503, "shutting_down")
        for thread, replies in streams:
            thread.join()
            *_, error, last = replies[0].events
            assert json.loads(error)["error"]["code"] == "shutting_down"
            assert last == "[DONE]"
        until(lambda: served.server.should_exit)
    assert "3 requests are cancelled: the grace period is over." in caplog.text


def test_a_second_signal_ends_the_server_at_once() -> None:
    with running(grace_period=600) as served:
        thread, replies = threaded(lambda: served.chat(STORY))
        until(lambda: served.metric("num_requests_running") == 1)
        served.server.handle_exit(signal.SIGINT, None)
        until(lambda: served.get("/ready").status == 503)
        assert not served.server.should_exit
        served.server.handle_exit(signal.SIGINT, None)
        thread.join()
        assert replies[0].status == 503


@pytest.mark.slow
def test_memory_stays_flat_under_four_times_the_load(tmp_path: Path) -> None:
    arguments = ("--max-running", "4", "--max-queue", "4")
    with in_process(*arguments, log=tmp_path / "log") as (served, process):
        told = psutil.Process(process.pid)
        sizes: list[int] = []
        refused = 0
        with ThreadPoolExecutor(32) as pool:
            for _ in range(8):
                for reply in pool.map(lambda _: served.chat(SHORT), range(500)):
                    assert reply.status in (200, 429)
                    refused += reply.status == 429
                    if reply.status == 200:
                        assert reply.json["choices"][0]["message"]["content"] == MADRID
                sizes.append(told.memory_info().rss)
        assert refused
        assert max(sizes[4:]) < sizes[3] + 16_000_000, sizes
