"""The only door to ``onnxruntime_genai``: models, generators, adapters, and its errors made ours.

Importing this module switches ONNX Runtime's telemetry off, unless ``ORT_DISABLE_TELEMETRY`` is
already set. ``onnxruntime_genai`` itself is imported when the first model is loaded.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from packaging.version import Version

from mlflow_phi3_onnx.core.native import NativeErrors
from mlflow_phi3_onnx.errors import (
    DependencyError,
    GenerationError,
    InvalidModelError,
    MemoryBudgetError,
)
from mlflow_phi3_onnx.runtime.messages import reason
from mlflow_phi3_onnx.runtime.providers import installed_distributions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "MAX_BATCH_SIZE",
    "PAD",
    "NativeGenerator",
    "NativeModel",
    "can_run_on",
    "check_config",
]

_logger = logging.getLogger(__name__)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

MINIMUM_VERSION = Version("0.11.4")

MAX_BATCH_SIZE = 32
"""The most sequences that one onnxruntime-genai generator takes."""

PAD = -1
"""The id that pads a ragged batch, where the model can read it.

onnxruntime-genai finds the length of a prompt by comparing ids with the pad id, so one that ends
with the model's own pad token would lose it. No prompt holds -1, and most embedding lookups read it
as the last row of their table, which the attention mask then hides.
"""

_UNKNOWN_TYPE = "Unsupported model_type"

# What the library says when it cannot load a model, and what that means.
_LOAD_FAULTS = {
    "Deserialize tensor|External data": (
        "the weights beside the graph are missing, truncated or damaged"
    ),
    "Protobuf parsing|No graph was found|Load model": (
        "the graph is not an ONNX model that this ONNX Runtime can run"
    ),
    "JSON Error|Error encountered while parsing": (
        "genai_config.json holds a value that onnxruntime-genai does not accept"
    ),
    "(?i:provider)|interface not available": (
        "an execution provider that it asks for is not available here"
    ),
}

# All of them: a default that genai_config.json sets for its own loop must not act behind ours.
_NEUTRAL_SEARCH = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
}


def can_run_on(provider: str) -> bool:
    """Whether this machine, with what is installed, is known to have an execution provider.

    onnxruntime-genai tells that of CUDA and DirectML. What it says of others is always yes, so
    they are not known to be here.
    """
    if provider == "cpu":
        return True
    checks = {"cuda": "is_cuda_available", "dml": "is_dml_available"}
    return provider in checks and bool(getattr(_import_genai(), checks[provider])())


def _import_genai() -> Any:
    try:
        genai = importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise DependencyError(
            "onnxruntime_genai cannot be imported. Install it with 'pip install onnxruntime-genai'"
            " for CPU, or 'onnxruntime-genai-cuda' or 'onnxruntime-genai-directml' for a GPU."
        ) from error
    version = Version(genai.__version__)
    if version < MINIMUM_VERSION:
        raise DependencyError(
            f"onnxruntime-genai {version} is installed; {MINIMUM_VERSION} or later is needed."
        )
    _tell_of_several_builds()
    return genai


@cache
def _tell_of_several_builds() -> None:
    builds = installed_distributions()
    if len(builds) > 1:
        _logger.warning(
            "%s are installed side by side and hold the same module, so that one has overwritten"
            " the other's files. Uninstall them all, and install one.",
            " and ".join(builds),
        )


def check_config(folder: Path) -> None:
    """Have onnxruntime-genai parse a folder's configuration, and say whether it knows the type.

    Raises:
        InvalidModelError: If it refuses.
        DependencyError: If onnxruntime-genai is missing or too old.
    """
    genai = _import_genai()
    try:
        genai.Config(str(folder))
    except Exception as error:
        raise _load_error(error, folder) from error
    with tempfile.TemporaryDirectory(prefix="mlflow-phi3-onnx-") as work:
        # Without its graphs: a type that is known fails at the first of them.
        shutil.copy(folder / "genai_config.json", work)
        try:
            config = genai.Config(work)
            config.clear_providers()
            genai.Model(config)
        except Exception as error:
            if _UNKNOWN_TYPE in str(error):
                raise _load_error(error, folder) from error


def _load_error(error: Exception, folder: Path) -> InvalidModelError:
    """Make an error that says which part of a model is broken, of what the library has raised.

    It raises a bare RuntimeError (or UnicodeDecodeError, for a damaged text file). What it says is
    classified, and shown without the absolute paths that it quotes.
    """
    faults = (fault for said, fault in _LOAD_FAULTS.items() if re.search(said, str(error)))
    fault = next(faults, "onnxruntime-genai refused it")
    return InvalidModelError(f"The model cannot be loaded: {fault}: {reason(error, folder)}")


def _run_error(error: BaseException) -> GenerationError:
    """Make an error of what the library has raised while it ran."""
    if "Could not allocate" in str(error):
        return MemoryBudgetError(
            "ONNX Runtime could not allocate the KV cache. Lower max_tokens, max_batch_size or"
            " kv_cache_memory."
        )
    return GenerationError(f"ONNX Runtime failed while it ran the model ({type(error).__name__}).")


_run_errors = NativeErrors(_run_error)


class NativeModel:
    """A model that onnxruntime-genai has loaded.

    Args:
        folder: The folder with ``genai_config.json``.
        overlay: Settings laid over ``genai_config.json``, in its own shape.
        provider: The execution provider to run on.
        switch: Whether that is another one than the folder asks for.
        provider_options: Options of that provider.
        pad: The id that pads a ragged batch.

    Attributes:
        pad: The same.

    Raises:
        InvalidModelError: If the folder cannot be loaded.
        DependencyError: If onnxruntime-genai is missing or too old.
    """

    def __init__(
        self,
        folder: Path,
        overlay: Mapping[str, Any],
        *,
        provider: str = "cpu",
        switch: bool = False,
        provider_options: Mapping[str, str] | None = None,
        pad: int = PAD,
    ) -> None:
        self.pad = pad
        self._genai = _import_genai()
        try:
            config = self._genai.Config(str(folder))
            if switch:
                config.clear_providers()
                if provider != "cpu":
                    config.append_provider(provider)
            for name, value in (provider_options or {}).items():
                config.set_provider_option(provider, name, value)
            config.overlay(json.dumps(overlay))
            config.overlay(json.dumps({"model": {"pad_token_id": pad}}))
            self._model = self._genai.Model(config)
        except Exception as error:
            raise _load_error(error, folder) from error
        self._adapters: Any = None

    def load_adapter(self, name: str, file: Path) -> None:
        """Load an adapter, for generators to use.

        Args:
            name: What it is called from now on.
            file: An ``.onnx_adapter`` file, which has been read and found whole.

        Raises:
            InvalidModelError: If it cannot be loaded.
        """
        try:
            if self._adapters is None:
                self._adapters = self._genai.Adapters(self._model)
            self._adapters.load(str(file), name)
        except Exception as error:
            raise InvalidModelError(
                f"adapters: {name!r} cannot be loaded: onnxruntime-genai refused it"
                f" ({type(error).__name__})."
            ) from error

    def generator(self, rows: int, max_length: int, adapter: str | None = None) -> NativeGenerator:
        """Make a generator for a number of sequences.

        Where keys and values are written in place, its KV cache has exactly max_length tokens.

        Args:
            rows: How many sequences, at most :data:`MAX_BATCH_SIZE`.
            max_length: Prompt and completion together, in tokens; the longest prompt's width
                counts for every sequence.
            adapter: The adapter that it uses for as long as it is there; None uses none.
        """
        with _run_errors:
            # A GeneratorParams stays shared with its generator: a fresh one each time.
            params = self._genai.GeneratorParams(self._model)
            params.set_search_options(batch_size=rows, max_length=max_length, **_NEUTRAL_SEARCH)
            generator = self._genai.Generator(self._model, params)
            if adapter is not None:
                generator.set_active_adapter(self._adapters, adapter)
            return NativeGenerator(generator, rows, max_length, adapter, self.pad)


class NativeGenerator:
    """One fixed batch of sequences inside onnxruntime-genai.

    Attributes:
        rows: How many sequences.
        max_length: How many tokens each may hold.
        adapter: The adapter that it uses; None for the model as it is.
    """

    def __init__(
        self, generator: Any, rows: int, max_length: int, adapter: str | None, pad: int
    ) -> None:
        self.rows = rows
        self.max_length = max_length
        self.adapter = adapter
        self._generator = generator
        self._pad = pad
        self._choice: NDArray[np.float32] | None = None
        self._head: NDArray[np.float32] | None = None

    def append(self, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Compute the prompts, one per sequence, padded on the right to the longest. Only once.

        None may end with the pad id.
        """
        width = max(len(prompt) for prompt in prompts)
        ids = np.full((self.rows, width), self._pad, dtype=np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        with _run_errors:
            self._generator.append_tokens(ids)

    def extend(self, tokens: NDArray[np.int32]) -> None:
        """Compute more tokens of the only sequence.

        Not after :meth:`advance` or :meth:`force`, whose last token would be left out.
        """
        self._head = None
        with _run_errors:
            if len(tokens) > 1 and tokens[-1] == self._pad:
                # At the end of several it would be taken for padding.
                self._generator.append_tokens(tokens[:-1])
                self._head = self._generator.get_output("logits")[0]
                tokens = tokens[-1:]
            self._generator.append_tokens(tokens)

    def rewind(self, tokens: int) -> None:
        """Go back to the first tokens, so many; to none, where there are several sequences."""
        with _run_errors:
            self._generator.rewind_to(tokens)

    def all_logits(self) -> NDArray[np.float32]:
        """Return the raw logits of the last :meth:`extend`, ``(tokens, vocabulary)``."""
        with _run_errors:
            logits = self._generator.get_output("logits")[0]
        return logits if self._head is None else np.concatenate([self._head, logits])

    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the raw logits of the next tokens, ``(sequences, vocabulary)``."""
        with _run_errors:
            return self._generator.get_logits()[:, -1, :]

    def advance(self) -> list[int]:
        """Append each sequence's most likely token and return them."""
        with _run_errors:
            self._generator.generate_next_token()
            return self._generator.get_next_tokens().tolist()

    def force(self, tokens: Sequence[int]) -> None:
        """Append the given token to each sequence. Call :meth:`logits` first."""
        if self._choice is None:
            width = self.logits().shape[-1]
            self._choice = np.full((self.rows, 1, width), -np.inf, dtype=np.float32)
        rows = np.arange(self.rows)
        self._choice[rows, 0, tokens] = 0.0
        with _run_errors:
            self._generator.set_logits(self._choice)
            self._generator.generate_next_token()
        self._choice[rows, 0, tokens] = -np.inf
