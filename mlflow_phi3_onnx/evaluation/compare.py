"""The one door of this room: :func:`compare`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.errors import ContextLengthError, GenAIError, InvalidRequestError
from mlflow_phi3_onnx.evaluation.open_side import open_side, takes_tokenizer
from mlflow_phi3_onnx.evaluation.result import Comparison, Run, compare_runs
from mlflow_phi3_onnx.evaluation.tracking import log_comparison, will_log
from mlflow_phi3_onnx.model.tokens import same_beginning
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.prompts import check_ids, check_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tqdm import tqdm

    from mlflow_phi3_onnx.evaluation.side import Prompt, Side, Text

__all__ = ["Comparison", "compare"]

_WARM_UP_TOKENS = 2


def compare(
    model_a: Any,
    model_b: Any,
    prompts: Sequence[str | Sequence[Mapping[str, Any]] | Sequence[int]],
    *,
    tokenizer: Any = None,
    max_tokens: int = 64,
    log: bool = True,
    name: str = "comparison",
) -> Comparison:
    """Compare two models on the same token ids: what they write, how sure they are, how fast.

    Each model continues every prompt greedily, one prompt after the other, and scores the prompt's
    own tokens. The raw logits alone decide: sampling and penalties of either model's configuration
    do not count. Both models are in memory together; first one computes, then the other.

    Logits are compared as log-probabilities, which is what they mean: two models whose logits
    differ by a constant are the same model.

    Args:
        model_a: The first model: a :class:`GenAIModel`, a pyfunc of this flavor or of
            ``mlflow.transformers``, the path or the ``models:/`` or ``runs:/`` URI of such a model,
            a folder with ``genai_config.json``, a text-generation pipeline of transformers, or a
            model of transformers, with ``tokenizer``.
        model_b: The second model.
        prompts: Whole prompts, in which control tokens are control tokens and to which nothing is
            added; conversations, lists of messages with ``role`` and ``content``, rendered by each
            model's own chat template; or lists of token ids. At least one, each of at least two
            tokens.
        tokenizer: The tokenizer of models of transformers that are no pipelines.
        max_tokens: The most tokens of a completion.
        log: Whether to log the result to the active run, if there is one: the table
            ``<name>.json``, with prompts and completions; ``<name>.txt``, a summary;
            ``<name>.png``, a plot, where matplotlib is installed; metrics and parameters that begin
            with ``<name>/``. Logged models that were compared, given by URI or as pyfuncs, become
            inputs of the run, and the metrics are those of ``model_b`` too.
        name: What the result is called in the run, which must not have one of that name.

    Returns:
        The comparison. Printed, it is a summary; ``to_pandas()`` is a table, one row a prompt.

    Raises:
        InvalidRequestError: If an argument is not what it may be, or the two models' tokenizers
            turn a prompt into different ids, so that nothing can be compared token by token.
        ContextLengthError: If a prompt and its completion do not fit into a model's context.
        SourceError: If there is no model at a path or URI.
        InvalidModelError: If a model cannot be loaded.
        DependencyError: If a model needs PyTorch and transformers, and they are not installed.
    """
    checked = _check_prompts(prompts)
    log = will_log(name, log=log)
    limit = PARAMETERS[CHAT]["max_tokens"].read(max_tokens)
    models = {"model_a": model_a, "model_b": model_b}
    if tokenizer is not None and not any(map(takes_tokenizer, models.values())):
        raise InvalidRequestError(
            "tokenizer is for a model of transformers that is no pipeline, and neither of the two"
            " is one.",
            param="tokenizer",
        )
    with ExitStack() as stack:
        sides = {side: open_side(model, side, tokenizer, stack) for side, model in models.items()}
        ids = [_encode(sides, prompt, f"prompts[{i}]") for i, prompt in enumerate(checked)]
        _check_lengths(sides, ids, limit)
        with rows_done(2 * len(ids)) as bar:
            runs = [_run(side, ids, limit, bar) for side in sides.values()]
        result = compare_runs(list(sides.values()), checked, ids, runs, limit)
    if log:
        log_comparison(result, name, list(sides.values()))
    return result


def _run(side: Side, prompts: Sequence[Sequence[int]], limit: int, bar: tqdm[Any]) -> list[Run]:
    """Let a model continue and score each prompt. What it does once, at first, is not timed."""
    side.greedy(prompts[0][:2], min(limit, _WARM_UP_TOKENS))
    runs: list[Run] = []
    for ids in prompts:
        started = time.perf_counter()
        completion = side.greedy(ids, limit)
        seconds = time.perf_counter() - started
        # Scored afterwards, for a prompt that was computed before is continued sooner.
        runs.append(Run(*side.score(ids), completion=completion, seconds=seconds))
        bar.update()
    return runs


def _check_prompts(prompts: Any) -> list[Prompt]:
    if not isinstance(prompts, list | tuple) or not prompts:
        kind = "an empty list" if prompts in ([], ()) else describe_kind(prompts)
        raise InvalidRequestError(
            "prompts must be a list of strings, of conversations (lists of messages) or of lists of"
            f" token ids; got {kind}.",
            param="prompts",
        )
    return [_check_prompt(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompts)]


def _check_prompt(prompt: Any, where: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list | tuple):
        hint = " Put a single conversation into a list." if isinstance(prompt, dict) else ""
        raise InvalidRequestError(
            f"{where} must be a string, a list of messages or a list of token ids; got"
            f" {describe_kind(prompt)}.{hint}",
            param=where,
        )
    if prompt and not isinstance(prompt[0], dict):
        return list(check_ids(prompt, where, " A conversation is a list of messages."))
    try:
        return check_messages(prompt)
    except InvalidRequestError as error:
        raise type(error)(f"{where}: {error.message}", param=where) from error


def _encode(sides: Mapping[str, Side], prompt: Prompt, where: str) -> list[int]:
    """Turn a prompt into the ids that both models make of it."""
    ids = prompt if isinstance(prompt, list) else _encode_text(sides, prompt, where)
    if len(ids) < 2:
        raise InvalidRequestError(
            f"{where} has {len(ids)} token{'s' * (len(ids) != 1)}; it needs at least two, for the"
            " first is never scored.",
            param=where,
        )
    for name, side in sides.items():
        if max(ids) >= side.vocab_size:
            raise InvalidRequestError(
                f"{where} has the token id {max(ids):,}; those of {name} are below"
                f" {side.vocab_size:,}.",
                param=where,
            )
    return ids


def _encode_text(sides: Mapping[str, Side], prompt: Text, where: str) -> list[int]:
    both: list[list[int]] = []
    for name, side in sides.items():
        try:
            both.append(side.encode(prompt))
        except GenAIError as error:
            raise type(error)(f"{where}, {name}: {error.message}", param=where) from error
    a, b = both
    if a != b:
        raise InvalidRequestError(
            f"{where} is {len(a):,} tokens for model_a and {len(b):,} for model_b, and the ids"
            f" differ from position {same_beginning(a, b):,} on. Only models with the same"
            " tokenizer and chat template can be compared token by token. Where you know the right"
            " ids, give them.",
            param=where,
        )
    return a


def _check_lengths(sides: Mapping[str, Side], prompts: Sequence[Sequence[int]], limit: int) -> None:
    for name, side in sides.items():
        context = side.context_length
        for i, ids in enumerate(prompts):
            if context is not None and len(ids) + limit > context:
                raise ContextLengthError(
                    f"prompts[{i}] has {len(ids):,} tokens and max_tokens is {limit:,}, together"
                    f" {len(ids) + limit:,}; the maximum context length of {name} is"
                    f" {context:,} tokens.",
                    param=f"prompts[{i}]",
                )
