"""MLflow's payloads: one request, rows in one of its JSON forms, or rows in CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.options import check_mapping
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.rows import clean_params, rows
from mlflow_phi3_onnx.openai.parameters import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["FRAMES", "Payload", "parse_csv", "parse_payload"]

FRAMES = ("dataframe_split", "dataframe_records", "instances", "inputs")
REQUESTS = ("messages", "prompt", "input")
"""The fields that make a body one request, as MLflow's server has it."""

_NOT_TEXT = {
    name
    for known in PARAMETERS.values()
    for name, option in known.items()
    if option.check.type in ("number", "true or false")
}
"""The columns of a CSV whose cells may be read as more than text."""


class Payload(NamedTuple):
    """What was asked for, in the form that it came in.

    Attributes:
        data: The rows, or the fields of one request.
        params: Parameters for all rows.
        one: Whether it is one request, which is answered without ``predictions``.
        columns: Whether it is an object of columns, whose lists have an item for each row.
    """

    data: Any
    params: dict[str, Any]
    one: bool = False
    columns: bool = False

    def model(self, default: str) -> Any:
        """Return the one ``model`` that all rows are for, as it came.

        Args:
            default: What a row is for that names none, where params name none either.

        Raises:
            InvalidRequestError: If rows are for several.
        """
        if isinstance(self.data, pd.DataFrame):
            column = self.data.get("model", pd.Series([None]))
            named = column.astype(object).where(column.notna(), None).tolist()
        elif isinstance(self.data, dict):
            value = self.data.get("model")
            named = value if self.columns and isinstance(value, list) else [value]
        else:
            several = self.data if isinstance(self.data, list) else []
            named = [row.get("model") if isinstance(row, dict) else None for row in several]
        beside = self.params.get("model")
        otherwise = default if beside is None else beside
        first, *others = [otherwise if n is None else n for n in named] or [otherwise]
        if any(other != first for other in others):
            raise InvalidRequestError(
                "model must be the same in all rows, and adapter may differ: one model answers a"
                " request. Send a request for each model.",
                param="model",
            )
        return first

    def rows(self, task: Task) -> list[dict[str, Any]]:
        """Return the fields of each request, without ``model``."""
        data = self.data
        if self.columns and task != CHAT:  # MLflow makes arrays of them
            lists = {k: np.array(v, dtype=object) for k, v in data.items() if isinstance(v, list)}
            data = {**data, **lists}
        return [{k: v for k, v in row.items() if k != "model"} for row in rows(data, task)]


def parse_payload(fields: Mapping[str, Any]) -> Payload:
    """Read a JSON payload.

    Raises:
        InvalidRequestError: If it has none of MLflow's forms.
    """
    if any(name in fields for name in REQUESTS):
        return Payload(dict(fields), {}, one=True)
    given = [name for name in FRAMES if name in fields]
    others = fields.keys() - {*FRAMES, "params"}
    if len(given) != 1 or others:
        raise InvalidRequestError(
            "The body must have messages or a prompt, for one request, or exactly one of"
            f" {', '.join(FRAMES)}, and maybe params; it has {len(given)} of these and"
            f" {len(others)} other fields."
        )
    (name,) = given
    params = clean_params(check_mapping(fields.get("params"), "params"))
    data = fields[name]
    if name.startswith("dataframe"):
        data = _frame(name, data)
    return Payload(data, params, columns=name == "inputs" and isinstance(data, dict))


def parse_csv(data: bytes) -> Payload:
    """Read a data frame in CSV, whose empty cells are what is not given.

    A prompt is the text that it is, as MLflow's server reads it by the model's signature, be it
    ``007`` or ``NA``. Not with pandas, which takes minutes for a million columns.

    Raises:
        InvalidRequestError: If it is none.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        names, *cells = filter(None, csv.reader(text, strict=True))
        if len(set(names)) < len(names) or any(len(line) != len(names) for line in cells):
            raise ValueError
    except (ValueError, csv.Error) as error:
        raise InvalidRequestError(
            "The body must be CSV in UTF-8, as pandas.DataFrame.to_csv(index=False) writes it: a"
            " line of names that differ, and lines with a cell for each of them."
        ) from error
    read = [list(map(_cell, names, line)) for line in cells]
    return Payload(pd.DataFrame(read, columns=names, dtype=object), {})


def _cell(name: str, cell: str) -> Any:
    if name in _NOT_TEXT:
        with contextlib.suppress(ValueError):
            return json.loads(cell.lower())  # pandas writes True
    return cell or None


def _frame(name: str, data: Any) -> pd.DataFrame:
    try:
        if name == "dataframe_records":
            if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
                raise ValueError
            return pd.DataFrame(data, dtype=object)
        if not isinstance(data, dict) or data.keys() - {"index", "columns", "data"}:
            raise ValueError
        cells, columns = data["data"], data.get("columns")
        if not isinstance(cells, list) or not all(isinstance(row, list) for row in cells):
            raise ValueError
        names = list(range(len(cells[0]))) if columns is None and cells else columns
        if not isinstance(names, list) or not all(type(one) in (str, int) for one in names):
            raise ValueError
        if len(set(map(str, names))) < len(names) or any(len(r) != len(names) for r in cells):
            raise ValueError
        return pd.DataFrame(cells, columns=names, dtype=object)
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        form = (
            "a list of objects, one a row"
            if name == "dataframe_records"
            else "an object with columns, a list of names that differ, and data, a list of rows,"
            " which are lists of that length"
        )
        raise InvalidRequestError(
            f"{name} must be {form}; got {describe_kind(data)}.", param=name
        ) from error
