"""From a model folder to a running engine: settings, repairs, and a first run to be sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from mlflow_phi3_onnx.artifact.repair import repairs
from mlflow_phi3_onnx.engine.inprocess import InProcessEngine
from mlflow_phi3_onnx.errors import GenerationError, InvalidModelError
from mlflow_phi3_onnx.generation.genai_loop import GenAILoop
from mlflow_phi3_onnx.runtime import PAD, NativeModel, available_threads

if TYPE_CHECKING:
    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.engine.base import Engine
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
    from mlflow_phi3_onnx.settings import Settings

__all__ = ["start_engine"]

DEFAULT_MAX_BATCH_SIZE = 16
KV_SHARE_OF_AVAILABLE_MEMORY = 0.5


def start_engine(folder: ModelFolder, tokenizer: PromptTokenizer, settings: Settings) -> Engine:
    """Load a model and start the engine that runs it.

    Args:
        folder: The model folder, read and found whole.
        tokenizer: Its tokenizer.
        settings: The checked configuration.

    Raises:
        InvalidModelError: If the model cannot be loaded, or does not fit its configuration.
    """
    native = NativeModel(folder.path, _overlay(folder, settings))
    _smoke(native, folder)
    memory = settings.runtime.get("kv_cache_memory")
    if memory is None:
        memory = int(psutil.virtual_memory().available * KV_SHARE_OF_AVAILABLE_MEMORY)
    batch = settings.runtime.get("max_batch_size", DEFAULT_MAX_BATCH_SIZE)
    return InProcessEngine(
        GenAILoop(native, folder.eos_token_ids[0], max_batch_size=batch),
        tokenizer=tokenizer,
        eos=frozenset(folder.eos_token_ids),
        vocab_size=folder.vocab_size,
        kv_bytes_per_token=folder.kv_bytes_per_token,
        kv_cache_memory=memory,
    )


def _overlay(folder: ModelFolder, settings: Settings) -> dict[str, Any]:
    """Build what is laid over ``genai_config.json``: threads, our pad id, and repairs."""
    decoder: dict[str, Any] = dict(repairs(folder).get("model", {}).get("decoder", {}))
    own_threads = folder.decoder.get("session_options", {}).get("intra_op_num_threads")
    threads = settings.runtime.get("intra_op_num_threads", own_threads) or available_threads()
    decoder["session_options"] = {"intra_op_num_threads": threads}
    return {"model": {"pad_token_id": PAD, "decoder": decoder}}


def _smoke(native: NativeModel, folder: ModelFolder) -> None:
    """Run the graph once: a config that does not fit it loads, and fails only then."""
    try:
        generator = native.generator(1, 2)
        generator.append([np.zeros(1, dtype=np.int32)])
        width = generator.logits().shape[-1]
    except GenerationError as error:
        raise InvalidModelError(
            "The model loads but cannot run: genai_config.json does not fit its graph."
        ) from error
    if width != folder.vocab_size:
        raise InvalidModelError(
            f"genai_config.json says vocab_size {folder.vocab_size:,}, but the graph gives"
            f" {width:,} logits."
        )
