"""MLflow's view of a request: each task's signature, and the rows of what MLflow hands over.

A request's fields are ``AnyType`` columns, because MLflow's own chat schema refuses much of what
OpenAI's clients send: a string ``stop``, numbers that are integers in one row and missing in the
next, content parts, nested tool schemas. Its errors also quote the whole input; ours name the
field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import (
    AnyType,
    Array,
    ColSpec,
    DataType,
    Object,
    ParamSchema,
    ParamSpec,
    Property,
    Schema,
)

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.tasks import CHAT, TEXT, Task
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS

__all__ = ["clean_params", "rows", "signature"]


def signature(task: Task) -> ModelSignature:
    """Build a task's signature.

    Chat and completions have every parameter as an optional column, the refused ones too, so that
    they arrive and are refused instead of being dropped with a warning. ``params`` has the plain
    numbers, as doubles, since MLflow takes neither ``5.0`` for a long nor null for a list.
    """
    if task == TEXT:
        inputs = Schema([ColSpec(DataType.string, "prompt")])
    else:
        field = INPUT_FIELDS[task]
        kind = Array(AnyType()) if task == CHAT else AnyType()
        optional = [ColSpec(_column(name), name, required=False) for name in PARAMETERS[task]]
        inputs = Schema([ColSpec(kind, field), *optional])
    return ModelSignature(inputs=inputs, outputs=_outputs(task), params=_params(task))


def rows(data: Any, task: Task) -> list[dict[str, Any]]:
    """Turn what MLflow hands to ``predict`` into one mapping of request fields a row.

    Args:
        data: A data frame, a mapping, a string (a prompt), or a sequence of mappings or prompts.
        task: The model's task.

    Raises:
        InvalidRequestError: If it is none of these.
    """
    field = INPUT_FIELDS[task]
    if isinstance(data, pd.DataFrame):
        if task != CHAT and field not in data.columns and len(data.columns) == 1:
            data = data.set_axis([field], axis=1)
        columns = [str(column) for column in data.columns]
        cells = data.itertuples(index=False, name=None)
        return [_row(dict(zip(columns, values, strict=True))) for values in cells]
    if isinstance(data, Mapping):
        return [_row(data)]
    if isinstance(data, str):
        return [{field: data}]
    if isinstance(data, np.ndarray | pd.Series):
        data = data.tolist()
    if isinstance(data, Sequence) and not isinstance(data, bytes):
        return [_row(item) if isinstance(item, Mapping) else {field: item} for item in data]
    raise InvalidRequestError(
        f"The input must be a data frame, an object with {field}, or a list of them; got"
        f" {describe_kind(data)}.",
        param=field,
    )


def clean_params(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what MLflow filled in for parameters that were not given."""
    cleaned = {name: _plain(value) for name, value in (params or {}).items()}
    # An MLflow list parameter cannot have null for its default, only an empty list.
    return {name: value for name, value in cleaned.items() if value is not None and value != []}


def _column(name: str) -> AnyType | Array:
    """Return the type of a parameter's column.

    MLflow takes a mapping for one row only where some column is an array or an object; otherwise
    an object in it, as ``logit_bias``, would be spread over rows. In completions, the refused
    ``messages`` is that column.
    """
    return Array(AnyType()) if name == "messages" else AnyType()


def _params(task: Task) -> ParamSchema:
    specs = [
        ParamSpec(name, DataType.double, None)
        for name, row in PARAMETERS[task].items()
        if row.numeric
    ]
    specs.append(ParamSpec("adapter", DataType.string, None))
    if task == TEXT:
        specs += [ParamSpec(n, DataType.boolean, None) for n in ("do_sample", "ignore_eos")]
        specs += [ParamSpec(name, DataType.string, None) for name in ("regex", "grammar")]
        specs += [ParamSpec(name, DataType.string, [], shape=(-1,)) for name in ("stop", "choice")]
        specs.append(ParamSpec("stop_token_ids", DataType.long, [], shape=(-1,)))
    return ParamSchema(specs)


def _outputs(task: Task) -> Schema:
    text, integer = DataType.string, DataType.long
    if task == TEXT:
        return Schema([ColSpec(text)])
    completion = {"message": _object(role=text, content=text)} if task == CHAT else {"text": text}
    columns = {
        "id": text,
        "object": text,
        "created": integer,
        "model": text,
        "choices": Array(_object(index=integer, **completion, finish_reason=text)),
        "usage": _object(prompt_tokens=integer, completion_tokens=integer, total_tokens=integer),
    }
    return Schema([ColSpec(kind, name) for name, kind in columns.items()])


def _object(**properties: Any) -> Object:
    return Object([Property(name, kind) for name, kind in properties.items()])


def _row(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Copy a row as plain Python values, without the fields that are not given."""
    row = {str(name): _plain(value) for name, value in fields.items()}
    return {name: value for name, value in row.items() if value is not None}


def _plain(value: Any) -> Any:
    """Copy a value as Python's own types; what pandas pads missing cells with becomes None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if hasattr(value, "asDict"):  # pyspark.sql.Row
        return _plain(value.asDict())
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    return value
