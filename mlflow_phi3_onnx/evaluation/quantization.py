"""Which precision to take: the one door is :func:`quantization_report`."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from mlflow_phi3_onnx.core.checks import describe_kind, integer
from mlflow_phi3_onnx.core.options import Option, check_mapping
from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS
from mlflow_phi3_onnx.errors import ContextLengthError, ConversionError, InvalidRequestError
from mlflow_phi3_onnx.evaluation.memory import PeakMemory, own_children
from mlflow_phi3_onnx.evaluation.open_side import OnnxSide, open_side
from mlflow_phi3_onnx.evaluation.quantization_result import (
    Measured,
    QuantizationReport,
    judged,
    plot,
)
from mlflow_phi3_onnx.evaluation.result import Scores, likeness
from mlflow_phi3_onnx.evaluation.side import Place
from mlflow_phi3_onnx.evaluation.tracking import log_result, will_log
from mlflow_phi3_onnx.model.native import GenAIModel
from mlflow_phi3_onnx.model.settings import Settings
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from mlflow_phi3_onnx.sources.convert.checkpoint import is_of_transformers, write_checkpoint
from mlflow_phi3_onnx.sources.convert.options import Conversion
from mlflow_phi3_onnx.sources.resolve import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.artifact.folder import ModelFolder

__all__ = ["encoded", "quantization_report"]

_logger = logging.getLogger(__name__)

PRECISIONS: tuple[Mapping[str, Any], ...] = (
    *(
        {"precision": "int4", "block_size": block, "algorithm": algorithm}
        for algorithm in ("rtn", "k_quant")
        for block in (32, 128)
    ),
    {"precision": "int8"},
    {"precision": "fp32"},
)
"""The forms that are measured where none are asked for."""

TEXTS = (
    "The lighthouse at the end of the pier was built in 1871, after two ships had been lost in one"
    " winter. Its keeper lived in three small rooms below the lamp, and wrote down every ship that"
    " passed. When the light was changed to electricity, the books were given to the town.",
    "To make bread, mix five hundred grams of flour with ten grams of salt and a little yeast. Add"
    " three hundred and fifty millilitres of warm water and knead the dough for ten minutes. Let it"
    " rise until it has doubled, shape it, and bake it in a hot oven for half an hour.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n"
    "    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n\n\nprint(mean([1, 2, 3]))  # 2.0\n",
    "Question: A train leaves at 9:40 and arrives at 11:05. How long does the journey take?\n"
    "Answer: From 9:40 to 10:40 is one hour, and from 10:40 to 11:05 is twenty-five minutes. So the"
    " journey takes one hour and twenty-five minutes.",
)
"""What is read where no texts are given: prose, instructions, code and reasoning."""

_REPEATS = Option("repeats", "How many turns are measured.", integer(1, 100), 3)
_SET_HERE = ("isolation", "prefix_cache")


@dataclass
class _Form:
    """One form of the model, and what is known of it so far."""

    name: str
    folder: ModelFolder
    size_bytes: int
    scores: list[Scores] = field(default_factory=list[Scores])
    prefill: list[float] = field(default_factory=list[float])
    decode: list[float] = field(default_factory=list[float])
    peak_memory_bytes: int = 0


def quantization_report(
    model: Any,
    precisions: Sequence[str | Mapping[str, Any]] | None = None,
    *,
    texts: Sequence[str] | None = None,
    tokenizer: Any = None,
    max_tokens: int = 32,
    repeats: int = 3,
    model_config: Mapping[str, Any] | None = None,
    log: bool = True,
    name: str = "quantization",
) -> QuantizationReport:
    """Convert a model of PyTorch in several precisions, and measure which are worth having here.

    The forms lie in a temporary folder together, and are gone at the end; one at a time is in
    memory, in a process of its own. They take turns, in the opposite order every other time, so
    that whatever else happens on the machine meets all alike.

    Args:
        model: What ``log_model`` converts: a text-generation pipeline or a model of transformers, a
            checkpoint folder, the id of a repository of PyTorch weights, or the URI of a model of
            ``mlflow.transformers``.
        precisions: The forms: each ``"int4"``, ``"int8"`` or ``"fp32"``, or a mapping of
            ``precision`` and values of ``export_options``. By default int4 in blocks of 32 and of
            128, with ``rtn`` and with ``k_quant``, int8, and fp32.
        texts: Whole texts of the kind that the model is for, each of at least two tokens: quality
            is measured on their tokens, and speed on reading and continuing them. By default four
            short ones in English, which tell the forms apart but little of your own use.
        tokenizer: The tokenizer of a model of transformers that is no pipeline.
        max_tokens: How many tokens are written after each text, at least two.
        repeats: How many turns are measured.
        model_config: Runtime settings of all forms, such as ``{"loop": "slots"}``.
        log: Whether to log the report to the active run, if there is one: the table
            ``<name>.json``; ``<name>.txt``, a summary; ``<name>.png``, a plot, where matplotlib is
            installed; metrics ``<name>/<form>/...``. No text is logged.
        name: What the report is called in the run, which must not have one of that name.

    Returns:
        The report. Its reference is the model in PyTorch where that is in memory, and else its own
        fp32 form, which is then made in any case.

    Raises:
        InvalidRequestError: If an argument is not what it may be.
        ContextLengthError: If a text and ``max_tokens`` do not fit into the model's context.
        SourceError: If there is no such model, or it is in ONNX form already.
        DependencyError: If the ``export`` extra is not installed.
        ConversionError: If no form can be made, or not the reference; where it is another, the
            report tells why.
    """
    will = will_log(name, log=log)
    conversions = _conversions(precisions)
    turns = _REPEATS.read(repeats)
    limit = _check_limit(max_tokens)
    read = _check_texts(TEXTS if texts is None else texts)
    config = _check_config(model_config)
    in_memory = is_of_transformers(model)
    if not in_memory:
        conversions.setdefault("fp32", ("fp32", None))
    with ExitStack() as stack:
        source, given = model, tokenizer
        if in_memory:  # written once, for all forms
            source, given = Path(stack.enter_context(_folder())), None
            write_checkpoint(model, tokenizer, source)
        forms, failed, prompts = _made(source, given, conversions, read, limit, stack)
        if not forms or not (in_memory or "fp32" not in failed):
            why = " ".join(f"{form}: {reason}" for form, reason in failed.items())
            raise ConversionError(f"The reference could not be made, or no form at all. {why}")
        _take_turns(forms, prompts, limit, turns, config)
        if in_memory:
            side = open_side(model, "model", tokenizer, stack)
            label, scores = side.label, [Scores(*side.score(ids)) for ids in prompts]
        else:
            label = "fp32"
            scores = next(form.scores for form in forms if form.name == label)
    measured = [
        Measured(
            name=form.name,
            size_bytes=form.size_bytes,
            quality=likeness(scores, form.scores),
            prefill=form.prefill,
            decode=form.decode,
            peak_memory_bytes=form.peak_memory_bytes,
        )
        for form in forms
    ]
    report = QuantizationReport(
        reference=label,
        reference_perplexity=measured[0].quality["perplexity_a"],
        texts=len(prompts),
        text_tokens=sum(map(len, prompts)),
        max_tokens=limit,
        repeats=turns,
        variants=judged(measured),
        failed=failed,
    )
    if will:
        _log(report, name)
    return report


def _conversions(precisions: Any) -> dict[str, tuple[str, Mapping[str, Any] | None]]:
    """Check the forms that are asked for; return precision and options of each, by its name."""
    asked = PRECISIONS if precisions is None else precisions
    if (
        isinstance(asked, str | Mapping)
        or not hasattr(asked, "__iter__")
        or not (every := [*asked])
    ):
        raise InvalidRequestError(
            "precisions must be a list of 'int4', 'int8', 'fp32' or mappings of precision and"
            f" export_options, at least one; got {describe_kind(precisions)}.",
            param="precisions",
        )
    conversions: dict[str, tuple[str, Mapping[str, Any] | None]] = {}
    for one in every:
        options = {"precision": one} if not isinstance(one, Mapping) else dict(one)
        precision = options.pop("precision", None)
        facts = Conversion.check(precision, options or None).facts()
        block = f"b{facts['block_size']}" if "block_size" in facts else None
        name = "-".join(filter(None, [facts["precision"], block, facts.get("algorithm")]))
        if name in conversions:
            raise InvalidRequestError(
                f"precisions has {name} twice. Give each form once.", param="precisions"
            )
        conversions[name] = (facts["precision"], options or None)
    return conversions


def _check_limit(max_tokens: Any) -> int:
    limit = PARAMETERS[CHAT]["max_tokens"].read(max_tokens)
    if limit < 2:
        raise InvalidRequestError(
            f"max_tokens must be at least 2, for the first token is not timed as the others are;"
            f" got {limit}.",
            param="max_tokens",
        )
    return limit


def _check_texts(texts: Any) -> list[str]:
    if isinstance(texts, str) or not hasattr(texts, "__iter__") or not (read := [*texts]):
        raise InvalidRequestError(
            f"texts must be a list of strings, at least one; got {describe_kind(texts)}.",
            param="texts",
        )
    for place, text in enumerate(read):
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"texts[{place}] must be a string; got {describe_kind(text)}.", param="texts"
            )
    return read


def _check_config(model_config: Mapping[str, Any] | None) -> dict[str, Any]:
    config = dict(check_mapping(model_config, "model_config"))
    for name in _SET_HERE:
        if name in config:
            raise InvalidRequestError(
                f"model_config: {name} is set by the report, which runs each form in a process of"
                " its own and computes every prompt anew. Leave it out.",
                param=name,
            )
    config |= {"isolation": "worker", "prefix_cache": False}
    Settings.check(config, COMPLETIONS)
    return config


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mlflow-phi3-onnx-", ignore_cleanup_errors=True)


def _made(
    source: Any,
    tokenizer: Any,
    conversions: Mapping[str, tuple[str, Mapping[str, Any] | None]],
    texts: list[str],
    limit: int,
    stack: ExitStack,
) -> tuple[list[_Form], dict[str, str], list[list[int]]]:
    """Convert a model into each form, for as long as the stack lasts; tell why some cannot be.

    The first that can brings the tokenizer, so the texts are checked before the others are made.

    Returns:
        The forms, why others could not be made, and the token ids of the texts.
    """
    prompts: list[list[int]] = []
    forms: list[_Form] = []
    failed: dict[str, str] = {}
    with rows_done(len(conversions)) as bar:
        for name, (precision, options) in conversions.items():
            wanted = Source(
                model=source, tokenizer=tokenizer, precision=precision, export_options=options
            )
            try:
                bundle = stack.enter_context(wanted.resolve()).bundle
            except ConversionError as error:
                _logger.warning("%s is left out: %s", name, error.message)
                failed[name] = error.message
            else:
                size = sum(file.stat().st_size for file in bundle.files.values())
                forms.append(_Form(name, bundle.variants[0].model, size))
                prompts = prompts or encoded(forms[0].folder, texts, limit)
            bar.update()
    return forms, failed, prompts


def _take_turns(
    forms: list[_Form],
    prompts: list[list[int]],
    limit: int,
    turns: int,
    config: Mapping[str, Any],
) -> None:
    """Measure the forms in turns."""
    with rows_done(turns * len(forms)) as bar:
        for turn in range(turns):
            for form in forms if turn % 2 == 0 else forms[::-1]:
                _take_turn(form, prompts, limit, config)
                bar.update()


def encoded(folder: ModelFolder, texts: list[str], limit: int) -> list[list[int]]:
    """Return the token ids of texts that a model can read, and continue by so many tokens.

    Raises:
        InvalidRequestError: If a text has fewer than two tokens.
        ContextLengthError: If one, with what follows it, does not fit into the model's context.
    """
    tokenizer = PromptTokenizer(folder.tokenizer_path)
    prompts = [tokenizer.encode(text, f"texts[{i}]").tolist() for i, text in enumerate(texts)]
    for place, ids in enumerate(prompts):
        if len(ids) < 2:
            raise InvalidRequestError(
                f"texts[{place}] has fewer than two tokens; the first is never scored.",
                param="texts",
            )
        if len(ids) + limit > folder.context_length:
            raise ContextLengthError(
                f"texts[{place}] has {len(ids):,} tokens, and {limit:,} are written after it; the"
                f" model's context length is {folder.context_length:,} tokens. Shorten the text, or"
                " lower max_tokens.",
                param="texts",
            )
    return prompts


def _take_turn(
    form: _Form, prompts: list[list[int]], limit: int, config: Mapping[str, Any]
) -> None:
    """Load a form, let it read and continue the prompts, and at its first turn score them."""
    others = {process.pid for process in own_children()}
    with ExitStack() as stack:
        memory = stack.enter_context(
            PeakMemory(lambda: [one for one in own_children() if one.pid not in others])
        )
        model = stack.enter_context(GenAIModel(form.folder, model_config=config, task=COMPLETIONS))
        model.greedy_tokens(prompts[0][:2], 2)  # what is done once, at first, is not timed
        asked = {"max_tokens": limit, "ignore_eos": True, "temperature": 0}
        answers = [model.run_timed(COMPLETIONS, {"prompt": ids, **asked}) for ids in prompts]
        form.peak_memory_bytes = max(form.peak_memory_bytes, memory.bytes)
        if not form.scores:
            side = OnnxSide(model, Place())
            form.scores = [Scores(*side.score(ids)) for ids in prompts]
    read = sum(answer.prompt_tokens for answer in answers)
    form.prefill.append(read / math.fsum(answer.time_to_first_token for answer in answers))
    written = sum(answer.decode_tokens for answer in answers)
    form.decode.append(written / math.fsum(answer.decode_seconds for answer in answers))


def _log(report: QuantizationReport, name: str) -> None:
    known = ("reference", "texts", "text_tokens", "max_tokens", "repeats")
    mlflow.log_params({f"{name}/{key}": getattr(report, key) for key in known})
    metrics: dict[str, float] = {f"{name}/reference_perplexity": report.reference_perplexity}
    for one in report.variants:
        values = {key: value for key, value in vars(one).items() if key != "name"}
        metrics |= {f"{name}/{one.name}/{key}": float(value) for key, value in values.items()}
    mlflow.log_metrics(metrics)
    log_result(report, name, plot)
