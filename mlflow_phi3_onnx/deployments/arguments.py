"""The arguments of a deployment, checked before anything is started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx.core.checks import allows, integer, number, one_of
from mlflow_phi3_onnx.core.checks import json_object as any_object
from mlflow_phi3_onnx.core.options import Option, find, read, table
from mlflow_phi3_onnx.core.tasks import ALL_TASKS
from mlflow_phi3_onnx.deployments.store import Recipe
from mlflow_phi3_onnx.errors import (
    InvalidModelError,
    InvalidRequestError,
    UnsupportedParameterError,
)
from mlflow_phi3_onnx.flavor.serving import KEYS_VARIABLE

TARGET = "onnx-genai"

_PYFUNC = "python_function"
_NATIVE = "mlflow_phi3_onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@allows("a string that is not blank")
def _host(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


@allows("an object with string keys and JSON values")
def _json_object(value: Any) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in any_object(value)):
        raise ValueError
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, RecursionError) as error:
        raise ValueError from error


# MLflow's command line hands every value over as text and the Python client as what it is, so what
# is no text is read from one, too.
_typed = partial(Option, from_text=True)

OPTIONS = table(
    Option(
        "host",
        "The address to listen on. Anything but this machine's own address lets others in, unless"
        f" {KEYS_VARIABLE} holds a key; MLflow's own server asks for none.",
        _host,
        "127.0.0.1",
    ),
    _typed(
        "port",
        "The port to listen on.",
        integer(1, 65535),
        otherwise="a free one, a new one at every update",
    ),
    _typed(
        "startup_timeout",
        "Seconds to wait for the server's first answer.",
        number(0, above=True),
        120.0,
    ),
    _typed(
        "workers",
        "Processes of MLflow's own server, each with a copy of the model in memory. This package's"
        " server is one process, which computes requests together.",
        integer(1),
        otherwise="1, or MLFLOW_MODELS_WORKERS",
    ),
    _typed(
        "timeout",
        "Whole seconds that a request may take.",
        integer(1),
        otherwise="60, or MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT",
    ),
    Option(
        "env_manager",
        "The Python environment of the server: this one, or one that MLflow makes for the model."
        " In another than this one MLflow's own server runs, which has no streams and no endpoints;"
        " so it does for models of other flavors.",
        one_of("local", "virtualenv", "uv", "conda"),
        "local",
    ),
    _typed(
        "model_config",
        "Overrides the model's own model_config.",
        _json_object,
        otherwise="what the model was logged with",
    ),
)
"""The keys of a deployment's config."""


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
            f"Deployments of target {TARGET} are in no endpoint; each is one itself. Leave"
            " 'endpoint' out and name a deployment.",
            param="endpoint",
        )


def one_name(deployment_name: str | None, endpoint: str | None) -> str:
    """The name of the deployment to ask, which may be named as an endpoint.

    Raises:
        InvalidRequestError: There is none, or it cannot be a deployment's.
        UnsupportedParameterError: There are both.
    """
    if deployment_name is not None:
        refuse_endpoint(endpoint)
    name = endpoint if deployment_name is None else deployment_name
    if name is None:
        raise InvalidRequestError(
            "predict needs a deployment name, or the same name as an endpoint.",
            param="deployment_name",
        )
    check_name(name, None)
    return name


def check_name(name: Any, endpoint: str | None) -> None:
    """Check how a deployment is named.

    Raises:
        InvalidRequestError: The name cannot be a deployment's, nor a folder's.
        UnsupportedParameterError: An endpoint was given.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            "A deployment's name has 1 to 63 letters, digits, dots, hyphens and underscores, and "
            f"starts with a letter or digit; {name!r} does not.",
            param="name",
        )
    refuse_endpoint(endpoint)


def check_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check a config.

    Returns:
        The checked values. A key that came as None or as an empty text stands for its default
        and is None.

    Raises:
        UnsupportedParameterError: A key is not one of a deployment's.
        InvalidRequestError: A value is not what its key takes.
    """
    what, where = "a key of a deployment's config", "config"
    if not isinstance(config, Mapping):
        return read(OPTIONS, config, what, where, shown=True)
    unset = [name for name, value in config.items() if value is None or value == ""]
    for name in unset:
        find(OPTIONS, name, what, where)
    return {**dict.fromkeys(unset), **read(OPTIONS, config, what, where, known=unset, shown=True)}


def merge(kept: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config that holds after a change, without the keys that went back to their default."""
    return {name: value for name, value in {**kept, **changes}.items() if value is not None}


def setting(config: Mapping[str, Any], name: str) -> Any:
    """What a checked config says of a key, or its default."""
    return config.get(name, OPTIONS[name].default)


def speaks_openai(recipe: Recipe) -> bool:
    """Whether this package's server runs, and not MLflow's."""
    return bool(recipe.task) and setting(recipe.config, "env_manager") == "local"


def check_speaks_openai(name: str, recipe: Recipe) -> None:
    """Check that a deployment can be asked as OpenAI is.

    Raises:
        UnsupportedParameterError: If it cannot.
    """
    if not speaks_openai(recipe):
        why = "env_manager is not local" if recipe.task else f"its model has no flavor {_NATIVE!r}"
        raise UnsupportedParameterError(
            f"Deployment {name!r} is no endpoint and cannot stream: MLflow's own server runs,"
            f" because {why}. Use predict with deployment_name.",
            param="endpoint",
            error_code="NOT_IMPLEMENTED",
        )


def make_recipe(model_uri: Any, flavor: Any, config: dict[str, Any]) -> Recipe:
    """Make a recipe in the context of the caller, for a model that exists and can be served.

    Args:
        model_uri: The model. Only its MLmodel file is read.
        flavor: The flavor that was asked for, if any.
        config: The checked config.

    Raises:
        InvalidRequestError: The URI is blank, the flavor is none that this target deploys, or the
            model cannot be loaded with the config's model_config.
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
    task = flavors.get(_NATIVE, {}).get("task")
    recipe = Recipe(
        model_uri=model_uri,
        flavor=flavor or (_NATIVE if _NATIVE in flavors else _PYFUNC),
        config={},
        cwd=str(Path.cwd()),
        tracking_uri=mlflow.get_tracking_uri(),
        registry_uri=mlflow.get_registry_uri(),
        task=task if task in ALL_TASKS else "",
    )
    return with_config(recipe, config)


def with_config(recipe: Recipe, config: dict[str, Any]) -> Recipe:
    """Give a recipe another config.

    Its model_config is checked as loading checks it, for MLflow drops what the model does not know.
    A server with an environment of its own may have another version of this package: it checks.

    Raises:
        InvalidRequestError: The model cannot be loaded with the model_config.
        UnsupportedParameterError: Several workers are asked for where there is only one.
    """
    recipe = replace(recipe, config=config)
    if recipe.task and speaks_openai(recipe):
        if config.get("workers", 1) > 1:
            raise UnsupportedParameterError(
                "workers is of MLflow's own server. This package's is one process, which computes"
                " requests together: leave workers out.",
                param="workers",
            )
        # It imports the libraries that run models, which no other command needs.
        from mlflow_phi3_onnx.model.settings import Settings

        Settings.check(config.get("model_config"), recipe.task)
    return recipe


def _read_flavors(model_uri: str) -> dict[str, Any]:
    """The flavors of a model, from its MLmodel file alone."""
    from mlflow.models import get_model_info

    code = "INVALID_PARAMETER_VALUE"
    try:
        return get_model_info(model_uri).flavors
    except MlflowException as error:
        reason = error.message
        code = error.error_code
    except Exception as error:  # noqa: BLE001 - stores and parsers raise what they like
        reason = f"{type(error).__name__}: {error}"
    from mlflow_phi3_onnx.sources.local import EXPECTED_PLACES

    raise InvalidModelError(
        f"The model {model_uri!r} cannot be read: {reason.rstrip('.')}. Expected"
        f" {EXPECTED_PLACES}.",
        param="model_uri",
        error_code=code,
    )
