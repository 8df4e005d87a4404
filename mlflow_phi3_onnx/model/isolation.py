"""Which process a model's engine runs in."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.artifact.folder import TOKENIZER_FILES
from mlflow_phi3_onnx.artifact.lora.adapters import fitted
from mlflow_phi3_onnx.engine.worker.process import OwnWorker, SharedWorker
from mlflow_phi3_onnx.engine.worker.remote import WorkerEngine
from mlflow_phi3_onnx.model.start import start_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.engine.base import Engine
    from mlflow_phi3_onnx.engine.options import EngineOptions, ServingPolicy
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["open_engine"]

_ENTRY = "mlflow_phi3_onnx.model.worker"


def open_engine(
    folder: ModelFolder,
    tokenizer: PromptTokenizer,
    options: EngineOptions,
    policy: ServingPolicy,
    adapters: Mapping[str, Path],
) -> Engine:
    """Start the engine that runs a model, or connect to it, in the process that is asked for.

    Args:
        folder: The model folder.
        tokenizer: Its tokenizer.
        options: How it is to be run.
        policy: What the program around it needs.
        adapters: Checked adapters, by name.

    Raises:
        InvalidModelError: If the model cannot be loaded, or an adapter does not fit it.
        InvalidRequestError: If the options cannot be had.
        EngineDeadError: If a process ended while it loaded the model.
    """
    isolation = options.isolation or policy.default_isolation
    if isolation == "inline":
        with fitted(adapters, folder) as files:
            return start_engine(folder, tokenizer.grammars, options, policy, files)
    if isolation == "shared":
        policy = replace(policy, processes=1)
    recipe = {
        "folder": str(folder.path.absolute()),
        "tokenizer": str(folder.tokenizer_path.absolute()),
        "adapters": {name: str(path.absolute()) for name, path in adapters.items()},
        "options": asdict(options),
        "policy": asdict(policy),
        "niceness": policy.niceness,
    }
    if isolation == "worker":
        start = partial(OwnWorker, _ENTRY, recipe)
    else:
        files = [*_files(folder), *adapters.values()]
        start = partial(SharedWorker, _ENTRY, recipe, _key(recipe, files))
    check = replace(folder, path=folder.path.absolute()).check
    return WorkerEngine(start, check, longest=policy.request_deadline)


def _files(folder: ModelFolder) -> Iterator[Path]:
    """List the files that an engine is made of."""
    yield from (folder.path / name for name in sorted(folder.native_files))
    yield from (folder.tokenizer_path / name for name in TOKENIZER_FILES)


def _key(recipe: Mapping[str, Any], files: list[Path]) -> str:
    """Name what is to be the same for processes that share a worker.

    A file that was changed since another process loaded it, is another.
    """
    facts = [[str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns, s.st_ino] for p in files]
    paths = {name: os.path.realpath(recipe[name]) for name in ("folder", "tokenizer")}
    told = [{**recipe, **paths}, facts, __version__, sys.version, sys.prefix]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]
