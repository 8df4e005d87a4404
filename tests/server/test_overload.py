"""A server that is asked for four times what it can do, and whose worker dies in the middle."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from benchmarks.measures.overload import LOAD, Answer, capacity, flood
from tests.support.doors import SPAIN
from tests.support.http_server import in_process

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("OVERLOAD_SECONDS", "12"))
"""How long; OVERLOAD_SECONDS=60 asks for a minute."""

PLACES, QUEUE = 4, 8
FIELDS: dict[str, Any] = {"messages": SPAIN, "n": 4, "max_tokens": 20}
MADRID = "The capital of Spain is Madrid."
MOST_GROWTH = 16_000_000


@pytest.mark.slow
def test_what_is_taken_is_answered_and_the_rest_is_refused(tmp_path: Path) -> None:
    limits = ("--max-running", str(PLACES), "--max-queue", str(QUEUE), "--log-level", "warning")
    with in_process(*limits, log=tmp_path / "log") as (served, process):
        told = psutil.Process(process.pid)
        (worker,) = told.children()
        rate = LOAD * capacity(served.port, FIELDS, PLACES + QUEUE, 3)
        sizes: list[int] = []

        async def watch() -> None:
            for moment in range(30):
                await asyncio.sleep(SECONDS / 30)
                sizes.append(told.memory_info().rss)
                if moment == 15:
                    worker.kill()

        async def scene() -> list[Answer]:
            answers, _ = await asyncio.gather(flood(served.port, FIELDS, rate, SECONDS), watch())
            return answers

        answers = asyncio.run(scene())
        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) == {200, 429, 503}, statuses
        for answer in answers:
            if answer.status == 200:
                texts = [one["message"]["content"] for one in json.loads(answer.body)["choices"]]
                assert texts == [MADRID] * 4
            elif answer.status == 429:
                assert b"\r\nretry-after: " in answer.head
                assert json.loads(answer.body)["error"]["code"] == "queue_full"
            else:
                assert json.loads(answer.body)["error"]["code"] == "engine_dead"
        assert statuses[503] <= PLACES  # those inside, and none that waited
        assert statuses[429] > statuses[200] > 0
        reply = served.chat(FIELDS)
        assert reply.json["choices"][0]["message"]["content"] == MADRID
        assert served.metric("num_requests_running") == served.metric("num_requests_waiting") == 0
        assert served.metric("worker_restarts_total") == 1
        assert max(sizes[20:]) < max(sizes[5:20]) + MOST_GROWTH, sizes
        assert not [child for child in told.children() if child.status() == psutil.STATUS_ZOMBIE]
