"""Answers that take too long: given up, whoever waits for them, and the work with them."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mlflow_phi3_onnx import GenAIModel, GenerationTimeoutError
from mlflow_phi3_onnx.core.request import Options
from tests.support.engines import ScriptedLoop, engine, job, submit, until

if TYPE_CHECKING:
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

NEVER = 1e-9


@pytest.fixture
def scripted(tokenizer: PromptTokenizer) -> ScriptedLoop:
    return ScriptedLoop(int(tokenizer.encode("a")[-1]))


def test_a_late_answer_is_given_up_and_its_mates_go_on(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    running = engine(scripted, tokenizer)
    scripted.gate.clear()
    late, patient = running.submit([job(max_tokens=50, timeout=NEVER), job(max_tokens=50)])
    scripted.gate.set()
    with pytest.raises(GenerationTimeoutError, match="Raise timeout") as caught:
        late.result()
    assert (caught.value.status, caught.value.param) == (504, "timeout")
    assert patient.result().tokens == 50
    running.close()


def test_a_timeout_counts_while_a_job_waits_for_memory(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    scripted.room = 20
    running = engine(scripted, tokenizer)
    scripted.gate.clear()
    (first,) = running.submit([job(length=10, max_tokens=10)])
    until(lambda: scripted.busy)
    (second,) = running.submit([job(length=10, max_tokens=10, timeout=NEVER)])
    scripted.gate.set()
    with pytest.raises(GenerationTimeoutError):
        second.result()
    assert first.result().tokens == 10
    running.close()


def test_a_stream_that_is_late_ends_with_an_error_and_no_more_is_computed(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    running = engine(scripted, tokenizer)

    async def read() -> None:
        async for _ in running.deltas(job(max_tokens=4000, timeout=NEVER)):
            pass

    with pytest.raises(GenerationTimeoutError):
        list(running.deltas(job(max_tokens=4000, timeout=NEVER)))
    with pytest.raises(GenerationTimeoutError):
        asyncio.run(read())
    until(lambda: not scripted.busy)
    assert scripted.steps < 10
    running.close()


def test_a_server_gives_up_when_its_own_timeout_is_over(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    running = engine(scripted, tokenizer, longest=NEVER)
    for asked in (job(max_tokens=4000), job(max_tokens=4000, timeout=3600.0)):
        with pytest.raises(GenerationTimeoutError):
            running.submit([asked])[0].result()
    running.close()


def test_a_real_answer_in_time_and_one_that_is_late(model: GenAIModel) -> None:
    prompt = model._tokenizer.encode("The capital of Spain is")
    in_time, late = submit(
        model, (prompt, 5, Options(timeout=3600.0)), (prompt, 5, Options(timeout=NEVER))
    )
    with pytest.raises(GenerationTimeoutError):
        late.result()
    assert in_time.result().text == " Madrid."
