"""From a request's fields to a :class:`ParsedRequest`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_phi3_onnx.core.checks import is_one, unpacked, without_nulls
from mlflow_phi3_onnx.core.options import check_mapping, read
from mlflow_phi3_onnx.core.request import ChatPrompt, Options, Prompt, Sampling
from mlflow_phi3_onnx.core.schemas import OF_SCHEMAS
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, Task
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai.amount import check_amount
from mlflow_phi3_onnx.openai.parameters import DEFAULTS, OF_MODEL, PARAMETERS, PREDICTION_DRAFT
from mlflow_phi3_onnx.openai.prompts import (
    MAX_COMPLETIONS,
    check_continued,
    check_messages,
    check_prompts,
    check_text,
)
from mlflow_phi3_onnx.openai.structured import FORMS
from mlflow_phi3_onnx.openai.tools.grammar import ToolCallRule

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["INPUT_FIELDS", "ParsedRequest", "parse_request"]

INPUT_FIELDS: Mapping[Task, str] = {
    "llm/v1/chat": "messages",
    "llm/v1/completions": "prompt",
    "text-generation": "prompt",
}
"""The field that holds the prompt, by task."""

_T = TypeVar("_T", Options, Sampling)

_LIMITS = ("max_tokens", "max_completion_tokens", "max_length")
_SAMPLES = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request.

    Attributes:
        prompts: Prompts, a chat exactly one.
        options: What to do with each of them.
        stream: ``stream`` as it was given, if it was.
        include_usage: Whether a stream ends with the usage.
        echo: Whether the completion begins with the prompt.
        calls: How tools are to be called, where that is enforced.
    """

    prompts: tuple[Prompt, ...]
    options: Options
    stream: bool | None = None
    include_usage: bool = False
    echo: bool = False
    calls: ToolCallRule | None = None


def parse_request(
    request: Mapping[str, Any],
    task: Task,
    *,
    params: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    model_defaults: Mapping[str, Any] | None = None,
    adapters: Collection[str] = (),
    own_name: str = "",
    context: int | None = None,
) -> ParsedRequest:
    """Check a request and settle every option.

    An option comes from the request, else from params, else from the model's saved configuration,
    else from ``genai_config.json``.

    Args:
        request: The fields: ``messages`` or ``prompt``, and parameters.
        task: What is asked for.
        params: Parameters beside the request, which hold for several requests.
        config: Checked parameters of the saved ``model_config``.
        model_defaults: The ``search`` section of the model's ``genai_config.json``.
        adapters: The names of the model's adapters.
        own_name: The name that completions of the model itself carry.
        context: The most tokens that a prompt may have.

    Raises:
        InvalidRequestError: If a field is not what it may be.
        UnsupportedParameterError: If a parameter is unknown or not supported.
        ContextLengthError: If a prompt of token ids is longer than the context.
    """
    field = INPUT_FIELDS[task]
    for given, what in ((params, "params"), (request, "request")):
        for name, value in check_mapping(given or {}, what).items():
            if name != field:
                check_amount(value, name)
    request = {
        name: without_nulls(value, OF_SCHEMAS) if isinstance(value, dict) else unpacked(value)
        for name, value in check_mapping(request, "request").items()
    }
    known, what = PARAMETERS[task], f"a parameter of {task}"
    beside = read(known, params, what, "params")
    asked = _over(beside, read(known, request, what, known=(field,)))
    merged = _over(config or {}, asked)
    search = model_defaults or {}
    of_model = {name: search[name] for name in OF_MODEL if name in search}
    settled = {**DEFAULTS, **of_model, **merged}
    _check_together(settled, asked)
    settled["adapter"] = _adapter(settled, adapters, own_name)
    options = _options(settled, asked, task)
    options = replace(options, sampling=_sampling(merged, settled, search))
    prompts = _prompts(request.get(field), settled, task, context)
    if len(prompts) * options.n > MAX_COMPLETIONS:
        raise InvalidRequestError(
            f"{len(prompts):,} prompts with {options.n} completions each are more than"
            f" {MAX_COMPLETIONS:,} completions. Lower n or send several requests.",
            param="n",
        )
    return ParsedRequest(
        prompts=prompts,
        options=options,
        stream=settled.get("stream"),
        include_usage={**DEFAULTS["stream_options"], **settled["stream_options"]}["include_usage"],
        echo=settled["echo"],
        calls=_calls(settled),
    )


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Lay parameters over others.

    A token limit replaces every token limit below it, a form of the completion every form, and a
    sampling option a do_sample.
    """
    hidden: set[str] = set()
    for group, replaced in ((_LIMITS, _LIMITS), (FORMS, FORMS), (_SAMPLES, ("do_sample",))):
        if any(name in upper for name in group):
            hidden.update(replaced)
    return {**{k: v for k, v in lower.items() if k not in hidden}, **upper}


def _check_together(settled: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if "max_tokens" in settled and "max_completion_tokens" in settled:
        raise InvalidRequestError(
            "max_tokens and max_completion_tokens mean the same; give one of them.",
            param="max_completion_tokens",
        )
    if settled.get("max_tokens") == 0 and not settled["echo"]:
        raise InvalidRequestError(
            "max_tokens is 0, which needs echo to be true: there would be nothing to write.",
            param="max_tokens",
        )
    if settled["top_logprobs"] and not settled.get("logprobs"):
        raise InvalidRequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if "prediction" in asked and asked.get("prompt_lookup_num_tokens") == 0:
        raise InvalidRequestError(
            "prediction is of no use where prompt_lookup_num_tokens is 0. Leave one of them out.",
            param="prediction",
        )
    _check_tool_choice(settled)
    _check_turn(settled)
    forms = [name for name in FORMS if settled.get(name) is not None]
    if len(forms) > 1:
        raise InvalidRequestError(
            f"{forms[0]} and {forms[1]} cannot both hold; give one of them.", param=forms[1]
        )
    if forms and _shows_tools(settled) and settled["tool_choice"].mode == "required":
        raise InvalidRequestError(
            f"{forms[0]} leaves no room for tool calls that are required. Leave out tools, or set"
            " tool_choice to 'auto' or 'none'.",
            param=forms[0],
        )
    if not (forms or _calls(settled)):
        return
    held = forms[0] if forms else "A grammar for tool calls"
    for name in ("min_tokens", "ignore_eos"):
        if settled[name]:
            raise InvalidRequestError(
                f"{held} says where the completion ends, so {name} cannot. Leave out {name}.",
                param=name,
            )


def _check_tool_choice(settled: Mapping[str, Any]) -> None:
    choice = settled["tool_choice"]
    names = [tool["function"]["name"] for tool in settled.get("tools", ())]
    if choice.mode == "none" or choice == ("auto", None, False):
        return
    if not names:
        raise InvalidRequestError("tool_choice asks for a call, so it needs tools.", param="tools")
    if not set(choice.names or ()) <= set(names):
        raise InvalidRequestError(
            "tool_choice names a function that is not among the tools.", param="tool_choice"
        )


def _check_turn(settled: Mapping[str, Any]) -> None:
    """Check what is asked for of the assistant's turn."""
    name = "reasoning_effort"
    if name in settled and name in settled.get("chat_template_kwargs", {}):
        raise InvalidRequestError(
            f"{name} stands twice, in chat_template_kwargs too. Leave one of them out.", param=name
        )
    if not settled["continue_final_message"]:
        return
    if settled.get("add_generation_prompt"):
        raise InvalidRequestError(
            "continue_final_message goes on with a message, and add_generation_prompt opens a new"
            " one; give one of them.",
            param="continue_final_message",
        )
    if _calls(settled):
        raise InvalidRequestError(
            "continue_final_message goes on with an answer, so the form of tool calls cannot be"
            " enforced. Leave it out, or tools.",
            param="continue_final_message",
        )


def _shows_tools(settled: Mapping[str, Any]) -> bool:
    return bool(settled.get("tools")) and settled["tool_choice"].mode != "none"


def _calls(settled: Mapping[str, Any]) -> ToolCallRule | None:
    """Settle what is enforced of tool calls; None leaves the model free."""
    if not _shows_tools(settled):
        return None
    choice = settled["tool_choice"]
    required = choice.mode == "required"
    parallel = settled["parallel_tool_calls"] and not choice.named
    strict = any(tool["function"].get("strict") for tool in settled["tools"])
    formed = any(settled.get(form) is not None for form in FORMS)
    if not required and not strict and parallel and choice.names is None and not formed:
        return None
    return ToolCallRule(required, choice.names, parallel)


def _prompts(
    value: Any, settled: Mapping[str, Any], task: Task, context: int | None
) -> tuple[Prompt, ...]:
    if task == CHAT:
        tools = settled["tools"] if _shows_tools(settled) else None
        continued = settled["continue_final_message"]
        messages = check_messages(value)
        if continued:
            check_continued(messages)
        return (
            ChatPrompt(
                messages,
                tools,
                settled.get("chat_template_kwargs", {}),
                settled.get("reasoning_effort"),
                opened=settled.get("add_generation_prompt", not continued),
                continued=continued,
            ),
        )
    if task == COMPLETIONS:
        return check_prompts(value, context)
    return check_text(value, advice=_advice(value))


def _advice(value: Any) -> str:
    """Say what takes the prompt that is no single text."""
    several = isinstance(value, list | tuple) and bool(value)
    first = value[0] if several else value
    if isinstance(first, int) and not isinstance(first, bool):
        return f" Token ids are for complete, and for models of the task {COMPLETIONS}."
    if several and isinstance(first, str):
        return " Send several prompts as rows of a data frame, or as a list to generate."
    return ""


def _adapter(settled: Mapping[str, Any], adapters: Collection[str], own_name: str) -> str | None:
    """Settle which adapter answers: ``adapter`` says so, or ``model`` if it is the name of one."""
    chosen = settled.get("adapter")
    if chosen is not None and chosen not in adapters:
        allowed = f"must be one of {', '.join(adapters)}; got another name"
        none = "cannot be chosen: this model has none. Leave it out of the request"
        raise InvalidRequestError(f"adapter {allowed if adapters else none}.", param="adapter")
    named = settled.get("model")
    known = is_one(named, *adapters)
    if not adapters or is_one(named, None, own_name) or (chosen and not known):
        return chosen
    if not known:
        raise InvalidRequestError(
            f"model must be {own_name}, the model itself, or one of its adapters,"
            f" {', '.join(adapters)}; got another name. Or leave it out of the request.",
            param="model",
        )
    if chosen not in (None, named):
        raise InvalidRequestError(
            f"model is {named} and adapter is {chosen}: both are adapters, and one answers. Give"
            " one of them.",
            param="model",
        )
    return named


def _options(settled: Mapping[str, Any], asked: Mapping[str, Any], task: Task) -> Options:
    logprobs = settled.get("logprobs")
    if task != COMPLETIONS:
        logprobs = settled["top_logprobs"] if logprobs else None
    options = _of_same_names(Options, settled)
    max_tokens = settled.get("max_completion_tokens", options.max_tokens)
    return replace(
        options,
        max_tokens=max_tokens,
        strict_limit=any(name in asked for name in _LIMITS),
        top_logprobs=logprobs,
        prompt_logprobs=settled["echo"] and (logprobs is not None or max_tokens == 0),
        keep_control_tokens=_shows_tools(settled),
        grammar=next((settled[name] for name in FORMS if settled.get(name) is not None), None),
        draft_tokens=settled["prompt_lookup_num_tokens"]
        or (0 if options.prediction is None else PREDICTION_DRAFT),
    )


def _sampling(
    merged: Mapping[str, Any], settled: Mapping[str, Any], search: Mapping[str, Any]
) -> Sampling:
    """Settle how tokens are chosen.

    A model whose own default is greedy (``do_sample`` false, or ``top_k`` 1 as in Microsoft's
    Phi-3) samples as soon as a caller gives one of the sampling options. Its ``top_k`` of 1 is
    then not a choice of how to sample, so it does not come back to make the temperature void.
    """
    greedy_top_k = search.get("top_k") == 1
    model_samples = bool(search.get("do_sample")) and not greedy_top_k
    samples = merged.get("do_sample", model_samples or any(name in merged for name in _SAMPLES))
    top_k = DEFAULTS["top_k"] if greedy_top_k and "top_k" not in merged else settled["top_k"]
    return replace(
        _of_same_names(Sampling, settled),
        temperature=settled["temperature"] if samples else 0.0,
        top_k=max(top_k, 0),
        no_repeat_ngram_size=search.get("no_repeat_ngram_size", 0),
    )


def _of_same_names(kind: type[_T], settled: Mapping[str, Any]) -> _T:
    """Make options of the parameters that are called as its fields."""
    names = [field.name for field in fields(kind) if field.name in settled]
    return kind(**{name: settled[name] for name in names})
