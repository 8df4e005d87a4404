"""Logging into the model registry, and loading out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from mlflow_phi3_onnx import load_model, log_model

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.models.model import ModelInfo

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def registered(demo: Path, store: MlflowClient) -> ModelInfo:
    """A model that was logged in a run and registered, with an alias."""
    with mlflow.start_run():
        info = log_model(
            demo,
            name="registered",
            registered_model_name="phi3",
            tags={"stage": "trial"},
            model_config={"temperature": 0},
        )
    store.set_registered_model_alias("phi3", "champion", "1")
    return info


def test_a_name_in_the_registry_registers_a_version(
    registered: ModelInfo, store: MlflowClient
) -> None:
    assert registered.registered_model_version == 1
    version: Any = store.get_model_version("phi3", "1")
    assert version.status == "READY"
    assert version.source == registered.model_uri
    assert version.tags["stage"] == "trial"


def test_the_version_says_what_it_is(registered: ModelInfo, store: MlflowClient) -> None:
    version: Any = store.get_model_version("phi3", str(registered.registered_model_version))
    assert version.description == (
        "phi3 for ONNX Runtime GenAI: 2.8 M parameters, int4, context of 4,096 tokens, for cpu."
    )
    assert version.tags == {"stage": "trial"}
    assert log_model(registered.model_uri, name="copy", registered_model_name="copy")
    copy: Any = store.get_model_version("copy", "1")
    assert copy.description == f"{version.description} From {registered.model_uri}."


def test_the_next_model_of_that_name_is_the_next_version(demo: Path) -> None:
    first = log_model(demo, name="again", registered_model_name="again")
    second = log_model(
        demo, name="again", registered_model_name="again", await_registration_for=None
    )
    assert (first.registered_model_version, second.registered_model_version) == (1, 2)


def test_no_name_in_the_registry_registers_nothing(demo: Path, store: MlflowClient) -> None:
    before = store.search_registered_models().to_list()
    info = log_model(demo, name="unregistered")
    assert info.registered_model_version is None
    assert len(store.search_registered_models()) == len(before)


def uris(info: ModelInfo) -> dict[str, str]:
    return {
        "logged model": info.model_uri,
        "run": f"runs:/{info.run_id}/registered",
        "version": "models:/phi3/1",
        "latest": "models:/phi3/latest",
        "alias": "models:/phi3@champion",
    }


KINDS = ("logged model", "run", "version", "latest", "alias")


@pytest.mark.parametrize("kind", KINDS)
def test_pyfunc_loads_it_from_every_kind_of_uri(
    registered: ModelInfo, kind: str, question: str, answer: str
) -> None:
    pyfunc = mlflow.pyfunc.load_model(uris(registered)[kind])
    request = {"messages": [{"role": "user", "content": question}], "max_tokens": 6}
    with pyfunc.get_raw_model():
        assert pyfunc.predict(request)[0]["choices"][0]["message"]["content"] == answer


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_natively_from_every_kind_of_uri(
    registered: ModelInfo, kind: str, question: str, answer: str
) -> None:
    messages = [{"role": "user", "content": question}]
    with load_model(uris(registered)[kind]) as model:
        response = model.chat(messages, max_tokens=6)
    assert response["choices"][0]["message"]["content"] == answer


def test_it_is_downloaded_to_the_folder_that_was_given(
    registered: ModelInfo, tmp_path: Path
) -> None:
    with load_model(registered.model_uri, dst_path=str(tmp_path)) as model:
        assert model.name == "phi3"
    assert list(tmp_path.rglob("model.onnx.data"))


def test_a_model_that_moved_keeps_working(
    registered: ModelInfo, tmp_path: Path, question: str, answer: str
) -> None:
    download_artifacts(registered.model_uri, dst_path=str(tmp_path / "first"))
    (tmp_path / "first").rename(tmp_path / "second")
    with load_model(tmp_path / "second") as model:
        response = model.chat([{"role": "user", "content": question}], max_tokens=6)
    assert response["choices"][0]["message"]["content"] == answer
