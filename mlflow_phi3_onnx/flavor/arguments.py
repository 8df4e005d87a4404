"""What is given to save and log a model, beside the model: checked before anything is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor import requirements

if TYPE_CHECKING:
    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["check_paths", "read_config", "read_environment", "read_metadata"]

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # C:/ is a path


def check_paths(name: str, given: Any) -> None:
    """Check that an argument lists files and folders that are there; URIs are not followed.

    Raises:
        InvalidRequestError: If it is no list of paths, or one leads to nothing.
    """
    paths = [] if given is None else given
    if not isinstance(paths, list) or not all(isinstance(path, str | Path) for path in paths):
        raise InvalidRequestError(
            f"{name} must be a list of paths; got {describe_kind(given)}.", param=name
        )
    for path in paths:
        if not _URI.match(str(path)) and not Path(path).exists():
            raise InvalidRequestError(f"{name}: there is nothing at {path}.", param=name)


def read_metadata(given: Any, task: Task) -> dict[str, Any]:
    """Return the metadata to save, with the task.

    Raises:
        InvalidRequestError: If it is no mapping, names another task, or YAML cannot hold it.
    """
    metadata = given or {}
    if not isinstance(metadata, Mapping):
        raise InvalidRequestError(
            f"metadata must be a mapping; got {describe_kind(metadata)}.", param="metadata"
        )
    if metadata.get("task", task) != task:
        raise InvalidRequestError(
            f"metadata says that the task is {metadata['task']!r}, but task is {task!r}.",
            param="metadata",
        )
    metadata = {**metadata, "task": task}
    try:
        yaml.safe_dump(metadata)
    except (yaml.YAMLError, RecursionError) as error:
        kinds = [describe_kind(value) for value in error.args[1:]]
        raise InvalidRequestError(
            "metadata must be of texts, numbers, true, false, null, and lists and mappings of them,"
            f" as the MLmodel file is YAML; got {' '.join(kinds) or 'something else'}.",
            param="metadata",
        ) from error
    return metadata


def read_config(model_config: Any) -> dict[str, Any]:
    """Return ``model_config`` as a mapping, read from its file if it is a path."""
    config = model_config
    if isinstance(config, str | Path):
        config = mlflow_compat.model_config_from_file(str(config))
    if config is None:
        return {}
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise InvalidRequestError(
            "model_config must be a mapping of names to values, or the path of a YAML file that"
            f" holds one; got {describe_kind(config)}.",
            param="model_config",
        )
    config = dict(config)
    mlflow_compat.check_model_config_is_json(config)
    return config


def read_environment(conda_env: Any, pip: Any, extra_pip: Any) -> tuple[Any, list[str], list[str]]:
    """Settle the conda environment, the requirements and their constraints."""
    mlflow_compat.validate_env_arguments(conda_env, pip, extra_pip)
    if conda_env is not None:
        return mlflow_compat.process_conda_env(conda_env)
    default = None if pip else requirements.get_default_pip_requirements()
    return mlflow_compat.process_pip_requirements(default, pip, extra_pip)
