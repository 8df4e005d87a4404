"""A model's entry in MLflow: what is checked before it is made, and what its page tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.auth_policy import AuthPolicy
from mlflow.models.resources import Resource

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.checks import (
    Check,
    allows,
    boolean,
    describe_kind,
    integer,
    number,
    string,
)
from mlflow_phi3_onnx.core.options import Option
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.inspect import describe, facts_of
from mlflow_phi3_onnx.sources import mlflow_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_phi3_onnx.flavor.save import PreparedModel

__all__ = ["check_entry", "page_of"]


@allows("a list of registered prompts, as URIs or objects")
def _prompts(value: Any) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(x, str | PromptVersion) for x in value):
        raise ValueError
    return value


@allows("a list of MLflow's resources, or the path of a YAML file of them")
def _resources(value: Any) -> Any:
    named = isinstance(value, str | Path)
    if not named and not (isinstance(value, list) and all(isinstance(x, Resource) for x in value)):
        raise ValueError
    try:
        Model(resources=str(value) if named else value)
    except Exception as error:  # what is wrong with the file has no class of its own
        raise ValueError from error
    return value


@allows("an AuthPolicy of MLflow's")
def _auth_policy(value: Any) -> AuthPolicy:
    if not isinstance(value, AuthPolicy):
        raise ValueError
    return value


_CHECKS: Mapping[str, Check[Any]] = {
    "step": integer(bits=64),
    "model_type": string,
    "await_registration_for": number(0),
    "validate_serving_input": boolean,
    "prompts": _prompts,
    "resources": _resources,
    "auth_policy": _auth_policy,
}

_ON_THE_PAGE = ("model_type", "parameters", "precision", "context_length", "vocab_size")


def check_entry(given: Mapping[str, Any]) -> None:
    """Check what MLflow would refuse later: after the model was fetched, converted and uploaded.

    Args:
        given: The arguments of ``log_model``, by name.

    Raises:
        InvalidRequestError: If one is not what it may be; the message is MLflow's own.
    """
    if given["name"] is not None and given["artifact_path"] is not None:
        raise InvalidRequestError(
            "name and artifact_path are the same, and artifact_path is deprecated. Give name only.",
            param="artifact_path",
        )
    for field, check in _CHECKS.items():
        if field == "step" or given[field] is not None:
            Option(field, "", check).read(given[field])
    if given["resources"] is not None and given["auth_policy"] is not None:
        raise InvalidRequestError(
            "auth_policy takes the place of resources. Give one of them.", param="auth_policy"
        )
    for field in ("params", "tags"):
        if not isinstance(given[field] or {}, Mapping):
            raise InvalidRequestError(
                f"{field} must be a mapping; got {describe_kind(given[field])}.", param=field
            )
    client = MlflowClient()
    checks = {
        "name": mlflow_compat.check_logged_model_name,
        "artifact_path": mlflow_compat.check_logged_model_name,
        "registered_model_name": mlflow_compat.check_model_name,
        "run_id": client.get_run,
        "model_id": client.get_logged_model,
    }
    prompts = [getattr(prompt, "uri", prompt) for prompt in given["prompts"] or ()]
    wanted: list[tuple[str, Any, Callable[[str], Any]]] = [
        *((field, given[field], check) for field, check in checks.items()),
        *(("prompts", prompt, client.load_prompt) for prompt in prompts),
    ]
    for field, value, look_up in wanted:
        if value is not None:
            if not isinstance(value, str):
                raise InvalidRequestError(
                    f"{field} must be a string; got {describe_kind(value)}.", param=field
                )
            try:
                look_up(value)
            except MlflowException as error:
                raise InvalidRequestError(f"{field}: {error.message}", param=field) from error


def page_of(
    prepared: PreparedModel, params: Mapping[str, Any] | None, tags: Mapping[str, Any] | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the parameters and tags of a logged model: what it is, and what the caller gave.

    Args:
        prepared: The model.
        params: The caller's own parameters, which come first, as do the tags.
        tags: The caller's own tags.
    """
    bundle, origin = prepared.source.bundle, prepared.source.origin
    facts = facts_of(bundle)
    known = {name: facts[name] for name in _ON_THE_PAGE}
    if sizes := bundle.model.graph.block_sizes:
        known["block_size"] = ", ".join(map(str, sorted(sizes)))
    known["execution_providers"] = ", ".join(facts["execution_providers"])
    known = {**known, "task": prepared.task, **prepared.config, **(params or {})}
    note = {mlflow_compat.DESCRIPTION_TAG: describe({**facts, "source": origin})}
    return (
        {name: _shortened(str(value)) for name, value in known.items()},
        {**note, **mlflow_models.tags_of(origin), **(tags or {})},
    )


def _shortened(text: str) -> str:
    longest = mlflow_compat.MAX_PARAM_VAL_LENGTH
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
