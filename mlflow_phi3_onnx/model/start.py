"""From a model folder to a running engine: which loop, its settings, and a first run to be sure."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.artifact.defects import repairs
from mlflow_phi3_onnx.artifact.onnx.chosen_logits import FIRST_WANTED, with_chosen_logits
from mlflow_phi3_onnx.artifact.onnx.graph import FULL_ATTENTION
from mlflow_phi3_onnx.engine.inprocess import InProcessEngine
from mlflow_phi3_onnx.engine.loops.genai import GenAILoop
from mlflow_phi3_onnx.engine.loops.genai_pool import GeneratorPool
from mlflow_phi3_onnx.engine.loops.slots import SlotsLoop
from mlflow_phi3_onnx.engine.options import EngineOptions, LoopName
from mlflow_phi3_onnx.errors import (
    DependencyError,
    InvalidModelError,
    InvalidRequestError,
    MemoryBudgetError,
)
from mlflow_phi3_onnx.model.trial import (
    FEWEST_FOR_SLOTS,
    TRIED,
    goes_back,
    try_genai,
    try_padding,
    try_slots,
)
from mlflow_phi3_onnx.runtime.genai import NativeModel
from mlflow_phi3_onnx.runtime.machine import available_memory, available_threads
from mlflow_phi3_onnx.runtime.ort import CACHE_TYPES, SlotSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.engine.loops.base import Loop
    from mlflow_phi3_onnx.engine.options import ServingPolicy
    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler

__all__ = ["start_engine", "why_not_slots"]

_logger = logging.getLogger(__name__)

KV_SHARE_OF_AVAILABLE_MEMORY = 0.5


def start_engine(
    folder: ModelFolder,
    grammars: Callable[[int, frozenset[int]], GrammarCompiler],
    options: EngineOptions,
    policy: ServingPolicy,
    adapters: Mapping[str, Path],
) -> InProcessEngine:
    """Load a model and start the engine that runs it in this process.

    Args:
        folder: The model folder.
        grammars: Gives the compiler of grammars for a vocabulary and the ids that end it.
        options: How it is to be run.
        policy: What the program around it needs.
        adapters: The files of the adapters that fit it, by name.

    Raises:
        InvalidModelError: If the model cannot be loaded, or does not fit its configuration.
        InvalidRequestError: If the loop that was asked for cannot run the model, the execution
            provider has no options, or the KV cache's memory is too little for any request.
    """
    if options.provider_options and options.provider(folder) == "cpu":
        raise InvalidRequestError(
            "provider_options are for execution providers other than cpu, which has none.",
            param="provider_options",
        )
    memory = options.kv_cache_memory
    if memory is None:
        memory = int(available_memory() * KV_SHARE_OF_AVAILABLE_MEMORY / policy.processes)
    eos = frozenset(folder.eos_token_ids)
    threads = max(1, available_threads() // policy.processes)
    threads = options.intra_op_num_threads or folder.threads or threads
    options = replace(options, intra_op_num_threads=threads)
    begun = time.monotonic()
    kv_tokens = memory // folder.kv_bytes_per_token
    loop = _start_loop(folder, options, policy, kv_tokens, adapters)
    _logger.info(
        "Loaded %s in %.1f s: %s loop, %s, %d threads, KV cache of at most %s tokens (%s bytes).",
        folder.model_type,
        time.monotonic() - begun,
        loop.name,
        options.provider(folder),
        threads,
        f"{kv_tokens:,}",
        f"{kv_tokens * folder.kv_bytes_per_token:,}",
    )
    return InProcessEngine(
        loop,
        grammars=partial(grammars, folder.vocab_size, eos),
        eos=eos,
        vocab_size=folder.vocab_size,
        kv_tokens=kv_tokens,
        kv_bytes_per_token=folder.kv_bytes_per_token,
        longest=policy.request_deadline,
    )


def why_not_slots(folder: ModelFolder, options: EngineOptions = EngineOptions()) -> str | None:
    """Say why the slots loop cannot run a model, or None where it can.

    It needs a graph whose only inputs are the ids, the mask and a past of keys and values, with
    full attention, on CPU.
    """
    graph, layers = folder.graph, folder.layers
    parts = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    past = {f"past_key_values.{part}" for part in parts}
    present = {f"present.{part}" for part in parts}
    elements = {kind for name, kind in graph.inputs.items() if name in past}
    attentions = graph.operators.get("GroupQueryAttention")
    reasons = {
        "session_options are for the genai loop": options.session_options,
        "it runs on CPU only": options.execution_provider not in (None, "cpu"),
        "its decoder is a pipeline of several graphs": len(folder.decoder_files) > 1,
        "its prompts can hold more than text": len(folder.modalities) > 1,
        "its graph has inputs for adapters, which only the genai loop uses": graph.optional,
        "its KV cache grows by appending, where this loop writes in place": (
            folder.cache_grows and not attentions
        ),
        "its graph has other inputs than ids, mask, keys and values": (
            set(graph.inputs) != past | {"input_ids", "attention_mask"}
        ),
        "its graph has other outputs than logits, keys and values": (
            set(graph.outputs) != present | {"logits"}
        ),
        "its graph has another attention than GroupQueryAttention": attentions != layers,
        "its attention has a sliding window": graph.attention_windows != FULL_ATTENTION,
        "its graph has two ranges of positions (LongRoPE)": folder.two_ranges,
        "its keys and values are neither float32 nor float16": elements - CACHE_TYPES,
        "it asks for an execution provider other than CPU": (
            options.execution_provider is None and folder.providers != ("cpu",)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _start_loop(
    folder: ModelFolder,
    options: EngineOptions,
    policy: ServingPolicy,
    kv_tokens: int,
    adapters: Mapping[str, Path],
) -> Loop:
    wanted = options.loop or policy.default_loop
    reason = None
    if wanted != "genai":
        level, reason = logging.INFO, why_not_slots(folder, options)
        if reason is None:
            try:
                return _start_slots(folder, options, kv_tokens)
            except _NO_SLOTS as error:
                if wanted == "slots":
                    raise
                level, reason = logging.WARNING, error.message
        elif wanted == "slots":
            raise InvalidRequestError(
                f"loop='slots' cannot run this model: {reason}. Use loop='genai' or 'auto'.",
                param="loop",
            )
        _logger.log(level, "loop='auto' takes the genai loop, not slots: %s", reason)
    loop = _start_genai(folder, options, policy, kv_tokens, adapters)
    loop.why = reason
    return loop


def _start_genai(
    folder: ModelFolder,
    options: EngineOptions,
    policy: ServingPolicy,
    kv_tokens: int,
    adapters: Mapping[str, Path],
) -> GenAILoop:
    _check_memory(folder, options, "genai", kv_tokens, _FEWEST)
    provider = options.provider(folder)
    threads = {"intra_op_num_threads": options.intra_op_num_threads}
    repaired = repairs(folder)
    decoder = repaired.get("decoder", {})
    decoder = {**decoder, "session_options": {**options.session_options, **threads}}
    load = partial(
        NativeModel,
        folder.path,
        {"model": {**repaired, "decoder": decoder}},
        provider=provider,
        switch=provider != folder.providers[0],
        provider_options=options.provider_options,
    )
    native = load()
    logits = try_genai(native, folder)
    # In a batch, every sequence would get the factors of the longest.
    widest = folder.graph.first_range if folder.two_ranges else folder.context_length
    # One that gives logits of the last token only gives those of the padding.
    every = len(logits) == TRIED
    shared = options.max_batch_size > 1 and widest > 0 and every
    if shared and not (padded := try_padding(native)):
        if padded is None:
            # Its embedding cannot look -1 up.
            native = None
            native = load(pad=folder.pad_token_id)
            padded = try_padding(native)
        if not padded:
            shared = False
            _logger.info("Sequences are computed one at a time: padding changes their logits.")
    for name, file in adapters.items():
        native.load_adapter(name, file)
        misfit = (
            f"adapters: the model cannot run with {name!r}: the shapes of its parameters do not"
            " belong together."
        )
        adapted = try_genai(native, folder, misfit, name)
        if len(folder.modalities) > 1 and np.array_equal(adapted, logits):
            # onnxruntime-genai may give adapters to another part of such a model, or to none.
            raise InvalidModelError(
                f"adapters: {name!r} changes nothing: with it, the model gives the same logits as"
                " without. Its numbers are zeros, or onnxruntime-genai does not use it with"
                f" {folder.model_type}. Leave it out."
            )
    pool = GeneratorPool(
        native,
        context_length=folder.context_length,
        eos=folder.eos_token_ids[0],
        goes_back=_goes_back(folder) and goes_back(native),
        reuse_prefixes=options.prefix_cache,
        first_range=folder.graph.first_range if folder.two_ranges else 0,
        grows=folder.cache_grows,
    )
    return GenAILoop(
        pool,
        kv_tokens=kv_tokens,
        max_batch_size=options.max_batch_size,
        all_logits=every,
        widest=widest if shared else 0,
        patient=policy.may_hold_gil,
    )


def _goes_back(folder: ModelFolder) -> bool:
    """Whether a model's cache can be taken back to any earlier state, and extended from there.

    That is so where it holds the keys and values of full attention and nothing else. One that grows
    holds those of all tokens, whatever attends to them.
    """
    graph = folder.graph
    others = graph.inputs.keys() - set(folder.kv_inputs)
    plain = others - graph.optional <= {"input_ids", "attention_mask", "position_ids"}
    full = graph.attention_windows == FULL_ATTENTION
    if folder.cache_grows and not folder.sliding_window:
        full = graph.attention_windows <= FULL_ATTENTION
    return plain and full and not folder.two_ranges


def _start_slots(folder: ModelFolder, options: EngineOptions, kv_tokens: int) -> SlotsLoop:
    _check_memory(folder, options, "slots", kv_tokens, FEWEST_FOR_SLOTS)
    graph = folder.path / folder.filename
    # ONNX Runtime follows links to weights from a file only, not from a graph in memory.
    linked = any((folder.path / name).is_symlink() for name in folder.graph.external)
    session = SlotSession(
        graph,
        chosen=None if linked else with_chosen_logits(graph),
        first_wanted=FIRST_WANTED,
        layers=folder.layers,
        heads=folder.heads,
        head_size=folder.head_size,
        element=folder.graph.inputs["past_key_values.0.key"],
        slots=max(2, options.max_batch_size),
        capacity=min(folder.context_length, kv_tokens),
        threads=options.intra_op_num_threads or 1,
    )
    try_slots(session, folder)
    return SlotsLoop(session, kv_tokens=kv_tokens, reuse_prefixes=options.prefix_cache)


def _check_memory(
    folder: ModelFolder, options: EngineOptions, loop: LoopName, kv_tokens: int, fewest: int
) -> None:
    """Check that the KV cache has room for so few tokens as a loop cannot do with less than."""
    if kv_tokens >= fewest:
        return
    given = options.kv_cache_memory
    came = "half of the memory that is available is less" if given is None else f"got {given:,}"
    raise InvalidRequestError(
        f"kv_cache_memory must be at least {fewest * folder.kv_bytes_per_token:,} bytes for the"
        f" {loop} loop, the KV cache of {fewest} tokens; {came}. A request takes"
        f" {folder.kv_bytes_per_token:,} bytes for each token of prompt and completion.",
        param="kv_cache_memory",
    )


_NO_SLOTS = (InvalidModelError, InvalidRequestError, DependencyError, MemoryBudgetError)
"""What the slots loop fails with where it cannot run a model, and another loop may."""

_FEWEST = 2
"""Tokens of the shortest request: one of its prompt and one of its completion."""
