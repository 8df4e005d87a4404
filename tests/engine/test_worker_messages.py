"""What crosses to a worker process is JSON that says all of it."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from mlflow_phi3_onnx import errors
from mlflow_phi3_onnx.core.request import Grammar, Options, Sampling, Timings
from mlflow_phi3_onnx.engine.base import Job, TokenDelta, TokenScore
from mlflow_phi3_onnx.engine.worker.messages import (
    pack_error,
    pack_job,
    unpack_delta,
    unpack_error,
    unpack_job,
)

OTHER: dict[str, Any] = {
    "temperature": 0.7,
    "seed": -(2**63),
    "repetition_penalty": 1.1,
    "logit_bias": {3: -100.0, 5: 0.5},
    "grammar": Grammar("lark", "start: @a", "tools", (("a", Grammar("regex", "[é\n]")),)),
    "stop": ("\n", "\ud800"),
    "stop_token_ids": (1, 2),
    "kept_tokens": frozenset({9, 7}),
    "timeout": 0.1,
    "prediction": "text",
    "adapter": "name",
    "top_logprobs": 0,
}


def changed(plain: Any) -> Any:
    """The same with another value in each field."""
    values: dict[str, Any] = {}
    for field in fields(plain):
        value = getattr(plain, field.name)
        if field.name == "sampling":
            values[field.name] = changed(value)
        elif isinstance(value, bool):
            values[field.name] = not value
        elif field.name in OTHER:
            values[field.name] = OTHER[field.name]
        else:
            values[field.name] = (value or 0) + 1
        assert values[field.name] != value, field.name
    return replace(plain, **values)


def crossed(packed: Any) -> Any:
    return json.loads(json.dumps(packed))


@pytest.mark.parametrize("options", [Options(), changed(Options()), Options(sampling=Sampling())])
def test_a_job_arrives_as_it_was_sent(options: Options) -> None:
    sent = Job(np.array([5, 0, 2**31 - 1], np.int32), 7, options, 3, True, (8, 9))
    came = unpack_job(crossed(pack_job(sent)))
    assert came.prompt.dtype == np.int32
    assert came.prompt.tolist() == [5, 0, 2**31 - 1]
    for name in ("max_tokens", "options", "index", "streamed", "draft_source"):
        assert getattr(came, name) == getattr(sent, name)
    grammar = came.options.grammar
    assert (grammar and grammar.param) == (options.grammar and options.grammar.param)


@pytest.mark.parametrize(
    "delta",
    [
        TokenDelta(()),
        TokenDelta((1,), timings=Timings(0.1, 0.25, 0.0)),
        TokenDelta((1, 2), "stop", cached_tokens=3, drafted_tokens=4, accepted_tokens=1),
        TokenDelta(
            (1,),
            "length",
            (TokenScore(1, -0.1 - 1e-9, ((1, -0.1), (2, -math.inf))),),
            (None, TokenScore(4, -2.5)),
        ),
    ],
)
def test_a_delta_arrives_as_it_was_sent(delta: TokenDelta) -> None:
    assert unpack_delta(crossed(delta)) == delta


@pytest.mark.parametrize("name", sorted(set(errors.__all__)))
def test_an_error_arrives_as_it_was_raised(name: str) -> None:
    sent = getattr(errors, name)("What to do.", param="n")
    came = unpack_error(crossed(pack_error(sent)))
    assert type(came) is type(sent)
    assert (came.message, came.param, came.status) == ("What to do.", "n", sent.status)
    assert came.to_openai() == sent.to_openai()
