"""From a saved model to a loaded one: its files checked, and one of its variants chosen."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_phi3_onnx.artifact.saved import MLMODEL_FILE, read_saved
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.model.native import GenAIModel, read_own
from mlflow_phi3_onnx.model.settings import Settings
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from mlflow_phi3_onnx.runtime.genai import can_run_on, check_config
from mlflow_phi3_onnx.runtime.providers import PROVIDERS, provider_name
from mlflow_phi3_onnx.sources.local import checked_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.artifact.bundle import Bundle, Variant
    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.core.tasks import Task

__all__ = [
    "PROVIDER_VARIABLE",
    "OpenedModel",
    "ReadModel",
    "choose_variant",
    "read_artifact",
    "read_model",
]

_logger = logging.getLogger(__name__)

PROVIDER_VARIABLE = "MLFLOW_PHI3_ONNX_EXECUTION_PROVIDER"
"""Chooses among the variants of a model, where no setting does."""


class OpenedModel(NamedTuple):
    """A saved model that is loaded.

    Attributes:
        model: The model.
        task: The task that it was saved for.
        settings: The saved configuration, with what replaced parts of it.
    """

    model: GenAIModel
    task: Task
    settings: Settings


class ReadModel(NamedTuple):
    """A model that was read and checked, and is not loaded.

    Attributes:
        folder: Its folder: that of the variant that was chosen.
        task: The task that it was saved for.
        settings: The saved configuration, with what replaced parts of it.
        adapters: The files of its adapters, by name.
        origin: Where it came from, where that was saved.
        model_id: Its id in MLflow, where it was logged there.
    """

    folder: ModelFolder
    task: Task
    settings: Settings
    adapters: Mapping[str, Path] = {}
    origin: Mapping[str, Any] | None = None
    model_id: str | None = None

    def check(self) -> None:
        """Read what loading it reads, but for its graph and weights.

        Raises:
            InvalidModelError: If the tokenizer, the template or a configuration cannot be used.
        """
        check_config(self.folder.path)
        PromptTokenizer(self.folder.tokenizer_path)

    def open(self, policy: ServingPolicy = ServingPolicy()) -> OpenedModel:
        """Load it.

        Args:
            policy: What the program around the model needs of its engine.

        Raises:
            InvalidModelError: If it cannot be loaded.
            InvalidRequestError: If the settings cannot be had here.
        """
        model = GenAIModel(
            self.folder,
            adapters=self.adapters,
            model_config=self.settings,
            task=self.task,
            origin=self.origin,
            model_id=self.model_id,
            policy=policy,
        )
        return OpenedModel(model, self.task, self.settings)


def read_artifact(path: Path, model_config: Mapping[str, Any] | None) -> ReadModel:
    """Read the model of an artifact folder.

    Args:
        path: The folder with the MLmodel file.
        model_config: Generation defaults and runtime settings that replace the saved ones, by key.

    Raises:
        InvalidModelError: If a file is not as it was saved, no variant can run here, or the model
            cannot be loaded.
        InvalidRequestError: If the configuration is not what it may be, or there is no variant for
            the execution provider that was asked for.
        SourceError: If the files are in a repository and cannot be fetched.
    """
    saved = read_saved(path)
    settings = Settings.check({**saved.config, **(model_config or {})}, saved.task)
    level = settings.verify or ("hash" if saved.by_reference else "size")
    folder = checked_files(saved, level)
    variant = choose_variant(saved.bundle(folder), settings.engine.execution_provider)
    model = replace(variant.model, saved=partial(saved.check, folder.absolute(), level))
    return ReadModel(model, saved.task, settings, saved.adapter_files, saved.source, saved.model_id)


def read_model(path: Path, model_config: Mapping[str, Any] | None) -> ReadModel:
    """Read a saved model, as :func:`read_artifact`, or a plain model folder, for chat."""
    if (path / MLMODEL_FILE).is_file():
        return read_artifact(path, model_config)
    settings = Settings.check(model_config, CHAT)
    return ReadModel(read_own(path, settings), CHAT, settings)


def choose_variant(bundle: Bundle, wanted: str | None = None) -> Variant:
    """Choose the form of a model that this machine can run.

    Args:
        bundle: The model.
        wanted: The execution provider that was asked for.

    Raises:
        InvalidRequestError: If there is no form for that.
        InvalidModelError: If there is none for this machine.
    """
    if not bundle.has_variants:
        return bundle.variants[0]
    if wanted is None and PROVIDER_VARIABLE in os.environ:
        wanted = provider_name(os.environ[PROVIDER_VARIABLE])
    have = ", ".join(dict.fromkeys(variant.provider for variant in bundle.variants))
    for provider in (wanted,) if wanted else filter(can_run_on, PROVIDERS):
        for variant in bundle.variants:
            if variant.provider == provider:
                _logger.info("The model's variant %s is taken, for %s.", variant.name, provider)
                return variant
    if wanted:
        raise InvalidRequestError(
            f"The model has no variant for {wanted}; it has: {have}.", param="execution_provider"
        )
    raise InvalidModelError(
        f"The model has variants for {have}, and none of these is known to be here. Install the"
        " onnxruntime-genai build for it, or choose with execution_provider."
    )
