"""What MLflow hands to a pyfunc, as rows of request fields.

MLflow's forms of an input lose what they were: an object may be one request, or hold a list with
a value a row for each field, as ``{"instances": [...]}`` arrives.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_phi3_onnx.core.checks import MAX_EXACT_FLOAT, NESTED, describe_kind
from mlflow_phi3_onnx.core.tasks import CHAT, TEXT, Task
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["clean_params", "rows"]


def rows(data: Any, task: Task, *, packed: bool = False) -> list[dict[str, Any]]:
    """Turn what MLflow hands to ``predict`` into one mapping of request fields a row.

    Args:
        data: A data frame, a mapping, a prompt, or a sequence of mappings or prompts. A mapping
            whose prompt is a list with one for each row is several rows; a prompt of completions
            may be a list itself, so there only an array or a Series is. ``{"inputs": ...}`` is
            what it holds. A frame of one column may call it anything. ``messages`` may be the JSON
            text of a list.
        task: The model's task.
        packed: Whether a frame of one row may be a mapping that MLflow made a frame of. A list of
            texts is read as the mapping's then, one for each row, for what came cannot be told.

    Raises:
        InvalidRequestError: If it is none of these.
    """
    found = _rows(data, task, packed=packed)
    return [_with_messages(row) if task == CHAT else row for row in found]


def clean_params(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what MLflow filled in for parameters that were not given."""
    cleaned = {name: _plain(value) for name, value in (params or {}).items()}
    # An MLflow list parameter cannot have null for its default, only an empty list.
    return {name: value for name, value in cleaned.items() if value is not None and value != []}


def _rows(data: Any, task: Task, *, packed: bool) -> Iterator[dict[str, Any]]:
    field = INPUT_FIELDS[task]
    if isinstance(data, Mapping) and set(data) == {"inputs"}:
        data = data["inputs"]
    if isinstance(data, pd.DataFrame):
        if len(data.columns) == 1 and str(data.columns[0]) not in {field, *PARAMETERS[task]}:
            data = data.set_axis([field], axis=1)
        columns = [str(column) for column in data.columns]
        if twice := next((name for name, count in Counter(columns).items() if count > 1), None):
            raise InvalidRequestError(
                "The data frame has several columns of one name. Leave one of them.",
                param=twice if twice in {field, *PARAMETERS[task]} else field,
            )
        if len(columns) > 1 and columns == [str(place) for place in range(len(columns))]:
            raise InvalidRequestError(
                f"The {len(columns):,} columns have no names. Name them as the request's fields,"
                f" {field} and its parameters; in Spark, wrap them in struct(...).",
                param=field,
            )
        cells = data.itertuples(index=False, name=None)
        found = [dict(zip(columns, values, strict=True)) for values in cells]
        object_of_lists = packed and len(found) == 1 and _may_be_stacked(found[0].get(field), task)
        yield from _unstacked(found[0], task) if object_of_lists else map(_row, found)
        return
    if isinstance(data, Mapping):
        yield from _unstacked(data, task)
        return
    if isinstance(data, np.ndarray | pd.Series):
        data = data.tolist()
    if isinstance(data, str):
        yield {field: data}
    elif isinstance(data, Sequence) and not isinstance(data, bytes):
        yield from (_row(item if isinstance(item, Mapping) else {field: item}) for item in data)
    else:
        raise InvalidRequestError(
            f"The input must be a data frame, an object with {field}, or a list of them; got"
            f" {describe_kind(data)}.",
            param=field,
        )


def _may_be_stacked(cell: Any, task: Task) -> bool:
    """Tell whether the prompt of a frame's only row may be several, in an object that was given.

    A chat and the prompt of completions may be lists themselves. Several chats are an array of two
    dimensions, which no other frame's cell is: MLflow makes it of ``{"instances": [...]}``.
    """
    return task == TEXT or (task == CHAT and isinstance(cell, np.ndarray) and cell.ndim > 1)


def _unstacked(fields: Mapping[Any, Any], task: Task) -> Iterator[dict[str, Any]]:
    """Yield the rows of an object: several, where its prompt is a list with one for each."""
    fields = {n: v.to_numpy() if isinstance(v, pd.Series) else v for n, v in fields.items()}
    row, field = _row(fields), INPUT_FIELDS[task]
    prompts = row.get(field)
    prompts = prompts if isinstance(prompts, list) else []
    kinds = {type(prompt) for prompt in prompts}
    several = {list} if task == CHAT else {str} if task == TEXT else {str, list}
    array = isinstance(fields.get(field), np.ndarray)
    if len(kinds) != 1 or not kinds <= several or not (task in (CHAT, TEXT) or array):
        yield row
        return
    count = len(prompts)
    stacked = {name for name, value in row.items() if _is_stacked(name, fields, value, count)}
    for place in range(count):
        yield _row({n: v[place] if n in stacked else v for n, v in row.items()})


def _is_stacked(name: str, fields: Mapping[Any, Any], value: Any, count: int) -> bool:
    """Tell whether a field has a value for each row: where it is a list as a whole, an array does.

    Args:
        name: The field.
        fields: The fields as they came.
        value: What came in this one, as plain values.
        count: How many rows there are.

    Raises:
        InvalidRequestError: If it is an array of another length: which rows it is of is lost.
    """
    array = isinstance(fields.get(name), np.ndarray) and isinstance(value, list)
    if array and len(value) != count:
        raise InvalidRequestError(
            f"{name} needs one value for each of the {count:,} rows; got {len(value):,}. Give it in"
            " every row, or send dataframe_records, whose rows may differ.",
            param=name,
        )
    if not isinstance(value, list) or len(value) != count:
        return False
    if array or all(isinstance(item, list) for item in value):
        return True
    return name not in ("stop", "choice", "stop_token_ids", "tools")


def _with_messages(row: dict[str, Any]) -> dict[str, Any]:
    text = row.get("messages")
    with suppress(ValueError, RecursionError):  # other text is refused as the text that it is
        if isinstance(text, str) and isinstance(messages := json.loads(text), list):
            return {**row, "messages": messages}
    return row


def _row(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Copy a row as plain Python values, without the fields that are not given.

    Arrow makes a float of an integer that other rows lack. It also gives arrays where Python has
    lists, which tells its rows from a caller's own.
    """
    arrow = any(_holds(cell, np.ndarray) and not _holds(cell, list) for cell in fields.values())
    row = {
        str(name): _plain(cell, whole=arrow and not _holds(cell, list))
        for name, cell in fields.items()
    }
    return {name: value for name, value in row.items() if value is not None}


def _holds(value: Any, kind: type, levels: int = NESTED) -> bool:
    """Tell whether a value is of a kind, or holds one."""
    if isinstance(value, kind):
        return True
    if levels == 0 or not isinstance(value, Mapping | np.ndarray | list | tuple):
        return False
    items = value.values() if isinstance(value, Mapping) else value
    return getattr(value, "ndim", 1) > 0 and any(_holds(x, kind, levels - 1) for x in items)


def _plain(value: Any, levels: int = NESTED, *, whole: bool = False) -> Any:
    """Copy a value as Python's own types; what pandas pads missing cells with becomes None.

    Args:
        value: The value.
        levels: What is nested deeper is refused elsewhere.
        whole: Whether a float without a fraction becomes an integer.
    """
    if not levels:
        return value
    if hasattr(value, "asDict"):  # pyspark.sql.Row
        value = value.asDict()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item, levels - 1, whole=whole) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, levels - 1, whole=whole) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    if whole and isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
        return int(value)
    return value
