"""From a request's fields to a checked :class:`~mlflow_phi3_onnx.request.Request`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai.checks import describe_kind
from mlflow_phi3_onnx.openai.messages import check_messages
from mlflow_phi3_onnx.openai.parameters import CHAT, COMPLETIONS, Task, check_parameters
from mlflow_phi3_onnx.request import ChatPrompt, Options, Prompt, Request, Sampling, TextPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Asked", "parse_request"]

INPUT_FIELDS: Mapping[Task, str] = {
    "llm/v1/chat": "messages",
    "llm/v1/completions": "prompt",
    "text-generation": "prompt",
}
"""The field that holds the prompt, by task."""

_LIMITS = ("max_tokens", "max_completion_tokens", "max_length")
_SAMPLES = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class Asked:
    """A request, and what its caller wants of the answer's form.

    Attributes:
        request: For the engine.
        stream: ``stream`` as it was given, if it was.
        include_usage: Whether a stream ends with the usage.
        echo: Whether the answer begins with the prompt.
    """

    request: Request
    stream: bool | None = None
    include_usage: bool = True
    echo: bool = False


def parse_request(
    fields: Mapping[str, Any],
    task: Task,
    *,
    params: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    model_defaults: Mapping[str, Any] | None = None,
) -> Asked:
    """Check a request and settle every option.

    An option comes from the request, else from params, else from the model's saved configuration,
    else from ``genai_config.json``.

    Args:
        fields: The request: ``messages`` or ``prompt``, and parameters.
        task: What is asked for.
        params: Parameters beside the request, which hold for several requests.
        config: Checked parameters of the saved ``model_config``.
        model_defaults: The ``search`` section of the model's ``genai_config.json``.

    Raises:
        InvalidRequestError: If a field is not what it may be.
        UnsupportedParameterError: If a parameter is unknown or not supported.
    """
    field = INPUT_FIELDS[task]
    beside = check_parameters(params or {}, task, where="params: ")
    asked = _over(beside, check_parameters(fields, task, known=(field,)))
    merged = _over(config or {}, asked)
    _check_together(merged)
    options = _options(merged, asked, model_defaults or {}, task)
    return Asked(
        request=Request(_prompt(fields.get(field), merged, task), options),
        stream=merged.get("stream"),
        include_usage=merged.get("stream_options", {}).get("include_usage", True),
        echo=merged.get("echo", False),
    )


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Lay parameters over others.

    A token limit replaces every token limit below it, and a sampling option a do_sample below it.
    """
    replaced = {name for group in (_LIMITS, _SAMPLES) for name in group if name in upper}
    hidden = {*_LIMITS} if replaced & {*_LIMITS} else set[str]()
    if replaced & {*_SAMPLES}:
        hidden.add("do_sample")
    return {**{k: v for k, v in lower.items() if k not in hidden}, **upper}


def _check_together(merged: Mapping[str, Any]) -> None:
    if "max_tokens" in merged and "max_completion_tokens" in merged:
        raise InvalidRequestError(
            "max_tokens and max_completion_tokens mean the same; give one of them.",
            param="max_completion_tokens",
        )
    if merged.get("top_logprobs") and not merged.get("logprobs"):
        raise InvalidRequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")


def _prompt(value: Any, merged: Mapping[str, Any], task: Task) -> Prompt:
    if task == CHAT:
        hidden = merged.get("tool_choice") == "none"
        return ChatPrompt(check_messages(value), None if hidden else merged.get("tools") or None)
    if not isinstance(value, str):
        kind = "it is missing" if value is None else f"got {describe_kind(value)}"
        raise InvalidRequestError(
            f"prompt must be a string; {kind}. Send several prompts as rows of a data frame.",
            param="prompt",
        )
    return TextPrompt(value)


def _options(
    merged: Mapping[str, Any], asked: Mapping[str, Any], search: Mapping[str, Any], task: Task
) -> Options:
    logprobs = merged.get("logprobs")
    if task != COMPLETIONS:
        logprobs = merged.get("top_logprobs", 0) if logprobs else None
    return Options(
        sampling=_sampling(merged, search),
        max_tokens=merged.get("max_tokens", merged.get("max_completion_tokens")),
        max_length=merged.get("max_length"),
        strict_limit=any(name in asked for name in _LIMITS),
        min_tokens=merged.get("min_tokens", 0),
        stop=merged.get("stop", ()),
        n=merged.get("n", 1),
        top_logprobs=logprobs,
        keep_control_tokens=bool(merged.get("tools")) and merged.get("tool_choice") != "none",
    )


def _sampling(merged: Mapping[str, Any], search: Mapping[str, Any]) -> Sampling:
    """Settle how tokens are chosen.

    A model whose own default is greedy (``do_sample`` false, or ``top_k`` 1 as in Microsoft's
    Phi-3) samples as soon as a caller gives one of the sampling options. Its ``top_k`` of 1 is
    then not a choice of how to sample, so it does not come back to make the temperature void.
    """
    model_top_k = search.get("top_k", 0)
    model_samples = bool(search.get("do_sample")) and model_top_k != 1
    samples = merged.get("do_sample", model_samples or any(name in merged for name in _SAMPLES))
    top_k = merged.get("top_k", 0 if model_top_k == 1 else model_top_k)
    return Sampling(
        temperature=merged.get("temperature", search.get("temperature", 1.0)) if samples else 0.0,
        top_k=max(top_k, 0),
        top_p=merged.get("top_p", search.get("top_p", 1.0)),
        min_p=merged.get("min_p", 0.0),
        seed=merged.get("seed"),
        repetition_penalty=merged.get("repetition_penalty", search.get("repetition_penalty", 1.0)),
        presence_penalty=merged.get("presence_penalty", 0.0),
        frequency_penalty=merged.get("frequency_penalty", 0.0),
        logit_bias=merged.get("logit_bias", {}),
        no_repeat_ngram_size=search.get("no_repeat_ngram_size", 0),
    )
