"""What crosses between an engine's process and its callers, as JSON: reading it runs no code.

A message is a list, its kind first. A caller sends ``job``, ``submit``, ``cancel`` and ``beat``,
and the engine ``ready`` or ``failed``, ``taken`` or ``refused``, ``delta`` or ``error``, ``beat``
and ``log``.
"""

from __future__ import annotations

import base64
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx import errors
from mlflow_phi3_onnx.core.request import Grammar, Options, Sampling, Timings
from mlflow_phi3_onnx.engine.base import Job, TokenDelta, TokenScore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "pack_error",
    "pack_job",
    "unpack_delta",
    "unpack_error",
    "unpack_job",
]

_IDS = np.dtype("<i4")
_PLAIN = Options()
_PLAIN_SAMPLING = Sampling()


def pack_job(job: Job) -> list[Any]:
    """Make a job plain; of its options, those that are not the default."""
    options = _changed(job.options, _PLAIN)
    if "sampling" in options:
        sampling = options["sampling"] = _changed(job.options.sampling, _PLAIN_SAMPLING)
        if "logit_bias" in sampling:
            sampling["logit_bias"] = list(sampling["logit_bias"].items())
    if "kept_tokens" in options:
        options["kept_tokens"] = sorted(options["kept_tokens"])
    if "grammar" in options:
        options["grammar"] = _pack_grammar(options["grammar"])
    return [
        # Written and read in a seventh of the time of a list.
        base64.b64encode(job.prompt.astype(_IDS).tobytes()).decode(),
        job.max_tokens,
        options,
        job.index,
        job.streamed,
        job.draft_source,
    ]


def unpack_job(packed: list[Any]) -> Job:
    """Make a job of what :func:`pack_job` returned."""
    prompt, max_tokens, options, index, streamed, draft_source = packed
    asked = {name: _READERS.get(name, _as_is)(value) for name, value in options.items()}
    return Job(
        np.frombuffer(base64.b64decode(prompt), _IDS).astype(np.int32),
        max_tokens,
        Options(**asked),
        index,
        streamed,
        tuple(draft_source),
    )


def unpack_delta(packed: list[Any]) -> TokenDelta:
    """Make a delta of the list that JSON makes of one."""
    ids, reason, logprobs, prompt_logprobs, cached, drafted, accepted, timings = packed
    scores = prompt_scores = ()
    if logprobs or prompt_logprobs:
        scores = tuple(map(_score, logprobs))
        prompt_scores = tuple(None if one is None else _score(one) for one in prompt_logprobs)
    times = None if timings is None else Timings(*timings)
    return TokenDelta(tuple(ids), reason, scores, prompt_scores, cached, drafted, accepted, times)


def pack_error(error: errors.GenAIError) -> list[Any]:
    """Make an error plain: its class, message, field and MLflow's code."""
    return [type(error).__name__, error.message, error.param, error.error_code]


def unpack_error(packed: list[Any]) -> errors.GenAIError:
    """Make an error of what :func:`pack_error` returned."""
    name, message, param, code = packed
    kind = getattr(errors, name) if name in errors.__all__ else errors.GenerationError
    return kind(message, param=param, error_code=code)


def _changed(value: Options | Sampling, plain: Options | Sampling) -> dict[str, Any]:
    names = (field.name for field in fields(value))
    return {name: ours for name in names if (ours := getattr(value, name)) != getattr(plain, name)}


def _pack_grammar(grammar: Grammar) -> list[Any]:
    parts = [[name, _pack_grammar(part)] for name, part in grammar.parts]
    return [grammar.kind, grammar.text, grammar.param, parts]


def _grammar(packed: list[Any]) -> Grammar:
    kind, text, param, parts = packed
    return Grammar(kind, text, param, tuple((name, _grammar(part)) for name, part in parts))


def _sampling(packed: Mapping[str, Any]) -> Sampling:
    given = dict(packed)
    return Sampling(logit_bias=dict(given.pop("logit_bias", ())), **given)


def _score(packed: list[Any]) -> TokenScore:
    token, logprob, top = packed
    return TokenScore(token, logprob, tuple((other, value) for other, value in top))


def _as_is(value: Any) -> Any:
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "sampling": _sampling,
    "stop": tuple,
    "stop_token_ids": tuple,
    "kept_tokens": frozenset,
    "grammar": _grammar,
}
"""What JSON does not keep apart, by the names of options."""
