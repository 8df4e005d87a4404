"""A stand-in for the script with which Azure ML serves an MLflow model that comes with no code.

It behaves as Azure's does with a model that is not of transformers, where a test can tell: what it
reads of a model before it starts, what it cannot start with, and what it makes of a request.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.types import Schema

__all__ = ["NoCodeScript"]


class NoCodeScript:
    """The script, with a model that it could start with.

    Args:
        folder: The saved model.
    """

    def __init__(self, folder: Path) -> None:
        info: Any = Model.load(str(folder))
        sample = _sample(info.saved_input_example_info, folder)
        self._has_params = False
        if info.signature is not None:
            _ = info.signature.inputs.inputs  # which a signature without inputs has not
            sample = _no_rows(info.signature.inputs) if sample is None else sample
            _no_rows(info.signature.outputs)
            self._has_params = info.signature.params is not None
        if isinstance(sample, dict) and not all(isinstance(v, np.ndarray) for v in sample.values()):
            raise TypeError("a sample that is an object must have arrays")
        self._table = isinstance(sample, pd.DataFrame)
        self._model = mlflow.pyfunc.load_model(str(folder))

    def score(self, body: str) -> tuple[int, Any]:
        """Answer a request: an object with ``input_data``, and maybe ``params``."""
        fields = json.loads(body)
        if "input_data" not in fields:
            return 400, {"message": "A value is not provided for the 'input_data' parameter."}
        try:
            params = fields.get("params")
            if params and self._has_params and not isinstance(params, dict):
                raise TypeError(type(params))
            answers = self._model.predict(self._read(fields["input_data"]), params=params)
        except Exception:  # noqa: BLE001 - the server in which the script runs tells no more of it
            return 500, {"message": "An unexpected error occurred in scoring script."}
        return 200, json.loads(json.dumps(answers))

    def close(self) -> None:
        self._model.get_raw_model().close()

    def _read(self, data: Any) -> Any:
        if self._table:
            return pd.read_json(io.StringIO(json.dumps(data)), orient="split", dtype=False)
        if isinstance(data, list):
            return np.asarray(data)
        return {name: np.asarray(value) for name, value in data.items()}


def _sample(example: dict[str, Any] | None, folder: Path) -> Any:
    """Read the input example. Of a data frame, it takes the text for a file's name, in vain."""
    if example is None or example["type"] == "dataframe":
        return None
    return json.loads((folder / example["artifact_path"]).read_text(encoding="utf-8"))


def _no_rows(schema: Schema) -> pd.DataFrame:
    """Make a data frame of a schema's columns. What is nested has no type in pandas."""
    names = schema.input_names() if schema.has_input_names() else range(len(schema.inputs))
    types = zip(names, schema.pandas_types(), strict=True)
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types})
