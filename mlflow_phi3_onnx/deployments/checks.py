"""The arguments of a deployment, checked before anything is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from mlflow_phi3_onnx.deployments.store import Recipe
from mlflow_phi3_onnx.errors import (
    InvalidModelError,
    InvalidRequestError,
    UnsupportedParameterError,
)

TARGET = "onnx-genai"

_PYFUNC = "python_function"
_NATIVE = "mlflow_phi3_onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_target(target_uri: str) -> None:
    """Accept ``onnx-genai``, ``onnx-genai:/`` and ``onnx-genai://local``.

    Raises:
        InvalidRequestError: It is another.
    """
    parsed = urlparse(target_uri)
    place = parsed.netloc + parsed.path.strip("/")
    if target_uri != TARGET and (
        parsed.scheme != TARGET or place not in {"", "local"} or parsed.query or parsed.fragment
    ):
        raise InvalidRequestError(
            f"The target URI is {TARGET!r}, {TARGET + ':/'!r} or {TARGET + '://local'!r}, not "
            f"{target_uri!r}: deployments are always on this machine.",
            param="target_uri",
        )


def refuse_endpoint(endpoint: str | None) -> None:
    """Raise UnsupportedParameterError where an endpoint was given."""
    if endpoint is not None:
        raise UnsupportedParameterError(
            f"Target {TARGET} has no endpoints: leave 'endpoint' out and name a deployment.",
            param="endpoint",
        )


def check_name(name: Any) -> None:
    """Raise InvalidRequestError for a name that cannot be a deployment's, nor a folder's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            "A deployment's name has 1 to 63 letters, digits, dots, hyphens and underscores, and "
            f"starts with a letter or digit; {name!r} does not.",
            param="name",
        )


def make_recipe(model_uri: Any, flavor: Any, config: dict[str, Any]) -> Recipe:
    """Make a recipe in the context of the caller, for a model that exists and can be served.

    Args:
        model_uri: The model. Only its MLmodel file is read.
        flavor: The flavor that was asked for, if any.
        config: The checked config.

    Raises:
        InvalidRequestError: The URI is blank, or the flavor is none that this target deploys.
        InvalidModelError: The model cannot be read, or lacks a flavor.
    """
    import mlflow

    if not isinstance(model_uri, str) or not model_uri.strip():
        raise InvalidRequestError("model_uri must be the URI of a model.", param="model_uri")
    if flavor not in {None, _PYFUNC, _NATIVE}:
        raise InvalidRequestError(
            f"Target {TARGET} deploys the flavors {_NATIVE!r} and {_PYFUNC!r}, not {flavor!r}.",
            param="flavor",
        )
    flavors = _read_flavors(model_uri)
    for needed in (_PYFUNC, flavor):
        if needed is not None and needed not in flavors:
            raise InvalidModelError(
                f"The model {model_uri!r} has no flavor {needed!r}; it has: "
                f"{', '.join(sorted(flavors)) or 'none'}.",
                param="flavor" if needed == flavor else "model_uri",
            )
    return Recipe(
        model_uri=model_uri,
        flavor=flavor or (_NATIVE if _NATIVE in flavors else _PYFUNC),
        config=config,
        cwd=str(Path.cwd()),
        tracking_uri=mlflow.get_tracking_uri(),
        registry_uri=mlflow.get_registry_uri(),
    )


def _read_flavors(model_uri: str) -> set[str]:
    """The flavors of a model, from its MLmodel file alone."""
    from mlflow.models import get_model_info

    code = databricks_pb2.INVALID_PARAMETER_VALUE
    try:
        return set(get_model_info(model_uri).flavors)
    except MlflowException as error:
        reason = error.message
        code = databricks_pb2.ErrorCode.Value(error.error_code)
    except Exception as error:  # noqa: BLE001 - stores and parsers raise what they like
        reason = f"{type(error).__name__}: {error}"
    raise InvalidModelError(
        f"The model {model_uri!r} cannot be read: {reason}", param="model_uri", error_code=code
    )
