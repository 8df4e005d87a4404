"""Models that MLflow holds as sources, where no conversion is needed."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.models import Model

from mlflow_phi3_onnx import (
    FLAVOR_NAME,
    DependencyError,
    InvalidModelError,
    InvalidRequestError,
    SourceNotFoundError,
    log_model,
    save_model,
)
from tests.support.fake_hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.models.model import ModelInfo

pytestmark = pytest.mark.usefixtures("tracking")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; whatever a test does, nothing may stay there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def logged(demo: Path, tracking: str) -> ModelInfo:
    """The demo model in a run, registered as version 1 of phi3, which is the champion."""
    with mlflow.start_run():
        info = log_model(
            demo, name="model", model_config={"temperature": 0}, registered_model_name="phi3"
        )
    mlflow.MlflowClient(tracking).set_registered_model_alias("phi3", "champion", "1")
    return info


def source_of(info: ModelInfo) -> dict[str, Any]:
    return info.flavors[FLAVOR_NAME]["source"]


def tags_of(info: ModelInfo) -> dict[str, Any]:
    tags = mlflow.get_logged_model(str(info.model_id)).tags
    return {k: v for k, v in tags.items() if k.startswith("mlflow_phi3_onnx.")}


URIS = {
    "version": ("models:/phi3/1", "models:/phi3/1"),
    "alias": ("models:/phi3@champion", "models:/phi3/1"),
    "latest": ("models:/phi3/latest", "models:/phi3/1"),
    "id": ("models:/{model_id}", "models:/{model_id}"),
    "run": ("runs:/{run_id}/model", "runs:/{run_id}/model"),
}


@pytest.mark.parametrize(("uri", "recorded"), URIS.values(), ids=URIS)
def test_a_model_of_this_flavor_is_logged_with_another_task_and_config(
    logged: ModelInfo, uri: str, recorded: str
) -> None:
    names = {"model_id": logged.model_id, "run_id": logged.run_id}
    info = log_model(
        uri.format(**names), name="text", task="text-generation", model_config={"max_tokens": 3}
    )
    assert source_of(info) == {
        "kind": "mlflow_model",
        "uri": recorded.format(**names),
        "model_id": logged.model_id,
        "flavor": FLAVOR_NAME,
        "source": {"kind": "folder"},
    }
    assert tags_of(info) == {"mlflow_phi3_onnx.source_uri": recorded.format(**names)}
    model = mlflow.pyfunc.load_model(info.model_uri)
    assert model.predict({"prompt": "The capital of Spain is"}) != []
    assert model.model_config["max_tokens"] == 3
    assert model.model_config["temperature"] is None
    assert info.flavors[FLAVOR_NAME]["files"] == logged.flavors[FLAVOR_NAME]["files"]


def test_a_saved_folder_is_a_source(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "first")
    save_model(tmp_path / "first", tmp_path / "second", task="text-generation")
    flavor = Model.load(str(tmp_path / "second")).flavors[FLAVOR_NAME]
    origin = {"kind": "mlflow_model", "flavor": FLAVOR_NAME, "source": {"kind": "folder"}}
    assert flavor["source"] == origin
    assert flavor["task"] == "text-generation"


def test_a_saved_folder_that_is_not_as_it_was_saved_is_no_source(
    demo: Path, tmp_path: Path
) -> None:
    save_model(demo, tmp_path / "first")
    added = tmp_path / "first/model/more.json"
    added.write_text("{}")
    with pytest.raises(InvalidModelError, match=r"more\.json was not saved with the model"):
        save_model(tmp_path / "first", tmp_path / "second")
    added.unlink()
    added.symlink_to(demo / "genai_config.json")
    with pytest.raises(InvalidModelError, match=r"more\.json is a symbolic link that leads out"):
        save_model(tmp_path / "first", tmp_path / "second")
    added.unlink()
    with (tmp_path / "first/model/tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json has .* were saved"):
        save_model(tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_files_that_a_run_holds_are_a_source(demo: Path) -> None:
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(demo), "models/cpu")
    uri = f"runs:/{run.info.run_id}/models"
    info = log_model(uri, name="from_files")
    assert source_of(info) == {"kind": "mlflow_folder", "uri": uri, "subfolder": "cpu"}
    assert source_of(log_model(uri, name="again", subfolder="cpu")) == source_of(info)


def test_weights_that_changed_in_the_store_are_not_logged_again(logged: ModelInfo) -> None:
    location = mlflow.get_logged_model(str(logged.model_id)).artifact_location
    weights = Path(str(location).removeprefix("file://")) / "model" / "model.onnx.data"
    with weights.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff\x00\xff")
    with pytest.raises(InvalidModelError, match=r"model\.onnx\.data is not the file that the sour"):
        log_model("models:/phi3/1", name="again")


@pytest.mark.parametrize(
    "uri",
    [
        "models:/phi3/7",
        "models:/phi3@nobody",
        "models:/nothing/1",
        "models:/m-0123456789abcdef0123456789abcdef",
        "models:/phi3",
        "models:/",
        "models:/phi3/1/model",
        "runs:/0123456789abcdef0123456789abcdef/model",
        "runs:/",
    ],
)
def test_a_uri_with_nothing_there_says_what_was_expected(logged: ModelInfo, uri: str) -> None:
    said = r"its sqlite store\. MLFLOW_TRACKING_URI .* Expected models:/<name>/<version>,"
    with pytest.raises(SourceNotFoundError, match=said) as caught:
        log_model(uri, name="bad")
    assert caught.value.param == "model"
    names = [m.name for m in mlflow.search_logged_models(["0"], output_format="list")]
    assert names == [logged.name]


def test_a_path_of_a_run_with_nothing_there(logged: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="MLflow has no model at runs:/"):
        save_model(f"runs:/{logged.run_id}/nothing", tmp_path / "saved")
    with mlflow.start_run() as run:
        mlflow.log_text("text", "folder/file.txt")
    with pytest.raises(InvalidModelError, match=r"The folder has no genai_config\.json"):
        save_model(f"runs:/{run.info.run_id}/folder", tmp_path / "saved")
    with pytest.raises(SourceNotFoundError, match=r"there is a file at runs:/"):
        save_model(f"runs:/{run.info.run_id}/folder/file.txt", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"precision": "int8"}, "the MLflow model is in ONNX form already"),
        ({"revision": "main"}, "revision is for repositories on the hub"),
        ({"subfolder": "model"}, "subfolder is for folders and repositories"),
        ({"tokenizer": object()}, "tokenizer is for a model of transformers"),
    ],
)
@pytest.mark.usefixtures("logged")
def test_arguments_of_other_sources_are_refused(
    tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        save_model("models:/phi3/1", tmp_path / "saved", **arguments)


def held(folder: Path, metadata: dict[str, Any] | None = None, **flavors: Any) -> Path:
    """Write the MLmodel file of a model of other flavors."""
    folder.mkdir()
    model = Model(metadata=metadata)
    for name, facts in flavors.items():
        model.add_flavor(name, **facts)
    model.save(str(folder / "MLmodel"))
    return folder


PIPELINE = {"task": "text-generation", "model_binary": "model", "components": ["tokenizer"]}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "other flavor": (
        {"sklearn": {}, "python_function": {}},
        "has the flavors python_function, sklearn; expected mlflow_phi3_onnx, or transformers",
    ),
    "other task": ({"transformers": {**PIPELINE, "task": "fill-mask"}}, "pipeline for fill-mask"),
    "adapter": ({"transformers": {**PIPELINE, "peft_adaptor": "peft"}}, "an adapter beside its"),
    "adapter of a local model": (
        {"transformers": {"task": "text-generation", "local_base_model_path": "/x"}},
        "an adapter beside its",
    ),
    "prompt template": (
        {"transformers": PIPELINE, "metadata": {"prompt_template": "Q: {prompt}"}},
        "has a prompt_template, which would be lost",
    ),
}


@pytest.mark.parametrize(("flavors", "says"), OTHERS.values(), ids=OTHERS)
def test_a_model_that_cannot_be_taken_says_why(
    tmp_path: Path, flavors: dict[str, Any], says: str
) -> None:
    folder = held(tmp_path / "held", **flavors)
    with pytest.raises(InvalidModelError, match=says):
        save_model(folder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_mlmodel_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "MLmodel").write_text("- not: [a model")
    with pytest.raises(InvalidModelError, match="MLmodel is not valid YAML"):
        save_model(tmp_path / "held", tmp_path / "saved")


def test_a_model_of_transformers_needs_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    pyfunc = {"loader_module": "mlflow.transformers", "config": {"max_new_tokens": 9}}
    folder = held(tmp_path / "held", transformers=PIPELINE, python_function=pyfunc)
    with pytest.raises(DependencyError, match="export extra"):
        save_model(folder, tmp_path / "saved")
    assert "saved with a model_config (max_new_tokens), which is not carried over" in caplog.text


def test_a_model_of_transformers_by_reference_is_looked_for_on_the_hub(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = {"task": "text-generation", "source_model_name": "org/phi3"}
    folder = held(tmp_path / "held", transformers={**reference, "source_model_revision": "a" * 40})
    for name in ("torch", "transformers", "onnx_ir"):
        monkeypatch.setitem(sys.modules, name, json)  # as if it were installed
    with FakeHub() as hub, hub.in_use(tmp_path, monkeypatch):
        hub.add("org/phi3", {"tokenizer.json": demo / "tokenizer.json"})
        with pytest.raises(SourceNotFoundError, match=f"org/phi3 has no revision {'a' * 40}"):
            save_model(folder, tmp_path / "saved")
