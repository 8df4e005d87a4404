"""Adapters behind MLflow's scoring server, where callers come at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient

import mlflow_phi3_onnx
from tests.support.adapted import FIELDS, told
from tests.support.servers import Server, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    folder: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
        mlflow_phi3_onnx.log_model(
            folder, name="chat", adapters=files, registered_model_name="chat"
        )
        MlflowClient().set_registered_model_alias("chat", "champion", "1")
        yield from serve(place, "chat")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] - None restores the default


def test_callers_choose_their_adapters(server: Server, answers: dict[str | None, str]) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "warm"},
        {"adapter": "cold"},
        {"model": "phi3"},
        {},
        {"model": "phi3", "adapter": "warm"},
        {"model": "cold", "n": 2},
    ]
    names = ["warm", "cold", None, None, "warm", "cold"]
    with ThreadPoolExecutor(6) as pool:
        given = list(pool.map(lambda body: server.post({**FIELDS, **body}), bodies * 4))
    for (status, body), name in zip(given, names * 4, strict=True):
        assert status == 200, body
        assert body[0]["model"] == (name or "phi3")
        assert told(body[0]) == answers[name]


def test_an_unknown_adapter_is_refused(server: Server) -> None:
    status, body = server.post({**FIELDS, "adapter": "hot"})
    assert status == 400
    assert "adapter must be one of cold, warm; got another name." in body["message"]
    status, body = server.post({**FIELDS, "model": "gpt-4"})
    assert status == 400
    assert "model must be phi3, the model itself, or one of its adapters" in body["message"]
    status, body = server.post({**FIELDS, "adapter": "warm", "model": "cold"})
    assert status == 400
    assert "model is cold and adapter is warm" in body["message"]
