"""The config of a deployment.

MLflow's command line hands every value over as text and the Python client as what it is, so what is
no text is read from one, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from mlflow_phi3_onnx.core.checks import allows, integer, number, one_of
from mlflow_phi3_onnx.core.checks import json_object as any_object
from mlflow_phi3_onnx.core.options import Option, find, read, table


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


_typed = partial(Option, from_text=True)

OPTIONS = table(
    Option(
        "host",
        "The address to listen on; the server asks for no password, so anything but this machine's"
        " own address lets others in.",
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
        "Server processes, each with a copy of the model in memory.",
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
        "The Python environment of the server: this one, or one that MLflow makes for the model.",
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
        return read(OPTIONS, config, what, where)
    unset = [name for name, value in config.items() if value is None or value == ""]
    for name in unset:
        find(OPTIONS, name, what, where)
    return {**dict.fromkeys(unset), **read(OPTIONS, config, what, where, known=unset)}


def merge(kept: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config that holds after a change, without the keys that went back to their default."""
    return {name: value for name, value in {**kept, **changes}.items() if value is not None}


def setting(config: Mapping[str, Any], name: str) -> Any:
    """What a checked config says of a key, or its default."""
    return config.get(name, OPTIONS[name].default)
