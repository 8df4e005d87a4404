"""A model's entry in MLflow: what is checked before it is made, and what its page tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.inspect import describe, facts_of
from mlflow_phi3_onnx.sources import mlflow_models

if TYPE_CHECKING:
    from mlflow_phi3_onnx.flavor.save import PreparedModel

__all__ = ["check_entry", "page_of"]

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
    for field, check in checks.items():
        if given[field] is not None:
            if not isinstance(given[field], str):
                raise InvalidRequestError(
                    f"{field} must be a string; got {describe_kind(given[field])}.", param=field
                )
            try:
                check(given[field])
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
