"""The table of requests through OpenAI's route, whole and streamed, with either loop."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.doors import (
    CANARY,
    REPORTED,
    SPAIN,
    Answer,
    Bad,
    bad_id,
    chat_pieces,
    check_same,
    crowd,
    whole_chat,
)
from tests.support.http_server import Running, running
from tests.support.table import BAD, BAD_NATIVE_ONLY, GOOD, SAME, check_good

if TYPE_CHECKING:
    from collections.abc import Iterator

# Over HTTP, model is the id of a served model, and null in JSON is no NaN.
OTHER_MODEL = {"model"}


@pytest.fixture(scope="module")
def served(loop: str) -> Iterator[Running]:
    with running(model_config={"loop": loop}) as one:
        yield one


def whole(served: Running, fields: dict[str, Any]) -> Answer:
    reply = served.chat(fields)
    assert reply.status == 200, reply.body
    assert reply.json["model"] == "demo"
    return whole_chat(reply.json)


def streamed(served: Running, fields: dict[str, Any]) -> Answer:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = served.chat({**fields, **options}).events
    assert last == "[DONE]"
    return chat_pieces(map(json.loads, chunks))


@pytest.mark.parametrize("door", [whole, streamed])
def test_good_requests(served: Running, references: list[Answer], door: Any) -> None:
    for case in GOOD:
        fields = {k: v for k, v in case.fields.items() if k not in OTHER_MODEL}
        check_good(door(served, {"messages": SPAIN, **fields}), case)
    for fields, reference in zip(SAME, references, strict=True):
        check_same(door(served, {**fields, **REPORTED}), reference)


def test_good_requests_beside_seven_others(served: Running, references: list[Answer]) -> None:
    with crowd(lambda fields: whole(served, fields)), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(streamed, served, {**fields, **REPORTED}) for fields in SAME]
        for answer, reference in zip(asked, references, strict=True):
            check_same(answer.result(), reference)


@pytest.mark.parametrize("case", [*BAD, *BAD_NATIVE_ONLY], ids=bad_id)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(server: Running, case: Bad, stream: bool) -> None:
    body = json.dumps({**case.fields, "stream": stream})
    reply = server.chat(json.loads(body))
    assert CANARY not in reply.body.decode()
    assert reply.status == 400
    if "NaN" in body or "Infinity" in body:
        assert "it has the number" in reply.error["message"]
        return
    lone = "holds a lone surrogate (U+D800)"  # is found before the field is checked
    assert (lone if r"\ud800" in body else case.says) in reply.error["message"]
    assert (reply.error["param"] or "") == case.param
    assert reply.error["type"] == "invalid_request_error"
