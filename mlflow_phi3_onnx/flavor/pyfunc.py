"""The model behind ``mlflow.pyfunc.load_model``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models import Model

from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME, MLMODEL_FILE
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.load import OpenedModel, read_artifact
from mlflow_phi3_onnx.flavor.output import Answering, read_pyfunc_settings
from mlflow_phi3_onnx.flavor.rows import clean_params, rows
from mlflow_phi3_onnx.flavor.serving import enter_server
from mlflow_phi3_onnx.flavor.signatures import packs_objects

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = ["FLAVOR_NAME", "_PyFuncWrapper", "_load_pyfunc"]


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> _PyFuncWrapper:
    """Load the pyfunc implementation. Called by :func:`mlflow.pyfunc.load_model`.

    Args:
        path: The model's data folder inside the artifact, or the artifact where it has none.
        model_config: The saved configuration, with what was overridden at load.
    """
    data = Path(path)
    here = (data / MLMODEL_FILE).is_file()
    return _PyFuncWrapper(data if here else data.parent, model_config or {})


class _PyFuncWrapper:
    """Runs MLflow's rows through a :class:`GenAIModel`.

    It can be pickled; a copy in another process loads the model again, at its first prediction.

    Args:
        path: The artifact folder.
        model_config: The saved configuration, with what was overridden at load.
    """

    def __init__(self, path: Path, model_config: dict[str, Any]) -> None:
        self._path = path
        self._model_config = model_config
        self._opened: OpenedModel | None = None
        self._open()
        self._packed = packs_objects(Model.load(str(path)).signature)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def get_raw_model(self) -> GenAIModel:
        """Return the native model."""
        return self._open().model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[Any]:
        """Answer every row, all of them together.

        Args:
            data: One request a row; see :func:`mlflow_phi3_onnx.flavor.rows.rows`.
            params: Parameters for all rows, a row's own fields coming first; and the settings
                ``output`` and ``on_error``, which come before those of ``model_config``.

        Returns:
            One entry a row, in order: what ``output`` says, or what ``on_error`` does.
        """
        model, task, settings = self._open()
        given = clean_params(params)
        how = Answering.chosen(settings.pyfunc, given)
        answers = model.run(
            task, rows(data, task, packed=self._packed), given, on_error=how.on_error
        )
        return how.written(answers, task)

    def predict_stream(self, data: Any, params: dict[str, Any] | None = None) -> Generator[Any]:
        """Answer one row in deltas: OpenAI chunks, or text for ``text-generation``."""
        model, task, _ = self._open()
        given = clean_params(params)
        if set_for_predict := sorted(read_pyfunc_settings(given)):
            raise InvalidRequestError(
                f"params: {set_for_predict[0]} is for predict; predict_stream yields chunks, or"
                " raises. Leave it out.",
                param=set_for_predict[0],
            )
        requests = rows(data, task, packed=self._packed)
        if len(requests) != 1:
            raise InvalidRequestError(
                f"predict_stream takes exactly one row; got {len(requests):,}. Use predict."
            )
        return model.run_stream(task, requests[0], given)

    def _open(self) -> OpenedModel:
        if self._opened is None:
            policy = enter_server()
            self._opened = read_artifact(self._path, self._model_config).open(policy)
        return self._opened
