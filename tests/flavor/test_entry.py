"""A model's entry in MLflow: cheap mistakes come first, and the page says what the model is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow.models import Model
from mlflow.models.auth_policy import AuthPolicy, SystemAuthPolicy
from mlflow.models.resources import DatabricksUCConnection

from mlflow_phi3_onnx import InvalidRequestError, SourceNotFoundError, log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.usefixtures("store")


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("name", {"name": "a/b"}),
        ("artifact_path", {"name": "a", "artifact_path": "b"}),
        ("registered_model_name", {"registered_model_name": "x/y:z"}),
        ("run_id", {"run_id": "f" * 32}),
        ("model_id", {"model_id": "m-none"}),
        ("params", {"params": [1]}),
        ("tags", {"tags": "no mapping"}),
        ("name", {"name": 5}),
        ("artifact_path", {"artifact_path": b"a"}),
        ("registered_model_name", {"registered_model_name": ["a"]}),
        ("run_id", {"run_id": 5}),
        ("model_id", {"model_id": 5}),
        ("prompts", {"prompts": ["prompts:/nope/1"]}),
        ("prompts", {"prompts": ["no URI"]}),
        ("prompts", {"prompts": [5]}),
        ("prompts", {"prompts": "prompts:/nope/1"}),
        ("metadata", {"metadata": {"a": np.float64(1)}}),
        ("metadata", {"metadata": {"a": [Path("x")]}}),
        ("resources", {"resources": [5]}),
        ("resources", {"resources": "no_such.yaml"}),
        ("auth_policy", {"auth_policy": 5}),
        ("auth_policy", {"auth_policy": AuthPolicy(), "resources": []}),
        ("step", {"step": "x"}),
        ("step", {"step": None}),
        ("model_type", {"model_type": 5}),
        ("await_registration_for", {"await_registration_for": "x"}),
        ("validate_serving_input", {"validate_serving_input": "x"}),
        ("code_paths", {"code_paths": [5]}),
        ("extra_files", {"extra_files": ["no_such.txt"]}),
    ],
)
def test_what_mlflow_would_refuse_is_refused_before_the_source_is_touched(
    field: str, given: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{field}|^name and {field}") as caught:
        log_model("no_such_folder", **given)
    assert caught.value.param == field


def test_a_wrong_source_is_told_where_all_else_is_right() -> None:
    with mlflow.start_run() as run, pytest.raises(SourceNotFoundError):
        log_model("no_such_folder", name="a", run_id=run.info.run_id, params={"x": 1})


def test_what_mlflow_takes_is_taken(demo: Path, tmp_path: Path, store: MlflowClient) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text("api_version: '1'\ndatabricks:\n  uc_connection:\n  - name: x\n")
    prompt = store.register_prompt("welcome", "Hi {{name}}")
    info = log_model(
        demo,
        name="whole",
        prompts=[prompt, "prompts:/welcome/1"],
        resources=str(file),
        step=3,
        model_type="llm",
        await_registration_for=None,
        metadata={"a": {"b": [1, None, 2.5, "x"]}},
        extra_files=[file.as_uri()],
    )
    saved = Model.load(info.model_uri)
    assert saved.resources["databricks"] == {"uc_connection": [{"name": "x"}]}
    assert saved.prompts == ["prompts:/welcome/1"] * 2
    policy = AuthPolicy(system_auth_policy=SystemAuthPolicy([DatabricksUCConnection("x")]))
    info = log_model(demo, name="with_policy", auth_policy=policy)
    assert Model.load(info.model_uri).auth_policy == policy.to_dict()
    info = log_model(demo, name="resources", resources=[DatabricksUCConnection("x")])
    assert Model.load(info.model_uri).resources == saved.resources


def test_the_page_says_what_the_model_is(demo: Path, store: MlflowClient) -> None:
    config = {"temperature": 0.5, "stop": ["."]}
    info = log_model(demo, name="page", model_config=config, params={"precision": "mine"})
    page = store.get_logged_model(str(info.model_id))
    flavor = info.flavors["mlflow_phi3_onnx"]
    assert page.params == {
        "model_type": "phi3",
        "parameters": str(flavor["parameters"]),
        "precision": "mine",
        "block_size": "32",
        "context_length": "4096",
        "vocab_size": "2560",
        "execution_providers": "cpu",
        "task": "llm/v1/chat",
        "temperature": "0.5",
        "stop": "['.']",
    }
    assert page.tags["mlflow.note.content"].startswith("phi3 for ONNX Runtime GenAI: 2.8 M param")


def test_models_are_found_by_what_they_are(demo: Path) -> None:
    log_model(demo, name="found", tags={"mlflow.note.content": "My own."})
    query = "params.precision = 'int4' AND name = 'found'"
    (found,) = mlflow.search_logged_models(filter_string=query, output_format="list")
    assert found.tags["mlflow.note.content"] == "My own."


def test_words_of_ones_own_describe_the_version_too(demo: Path, store: MlflowClient) -> None:
    words = {"mlflow.note.content": "My own."}
    log_model(demo, name="own", tags=words, registered_model_name="own")
    assert store.get_model_version("own", "1").description == "My own."
    described = str(store.get_registered_model("own").description)
    assert described == "My own. Described as of version 1."


def test_what_register_model_leaves_out_is_with_the_logged_model(
    demo: Path, store: MlflowClient
) -> None:
    """As docs/artifact.md tells: MLflow copies no description, and its remedy works."""
    info = log_model(demo, name="bare")
    version = mlflow.register_model(info.model_uri, "bare")
    assert (version.description, version.tags) == (None, {})
    logged = store.get_logged_model(str(info.model_id))
    store.update_model_version("bare", version.version, logged.tags["mlflow.note.content"])
    described = str(store.get_model_version("bare", version.version).description)
    assert described.startswith("phi3 for ONNX Runtime GenAI: 2.8 M")


def test_long_values_are_shortened_to_what_mlflow_takes(demo: Path, store: MlflowClient) -> None:
    info = log_model(demo, name="long", params={"exact": "x" * 6000, "longer": "x" * 6001})
    params = store.get_logged_model(str(info.model_id)).params
    assert params["exact"] == "x" * 6000
    assert params["longer"] == "x" * 5999 + "…"


def test_a_new_registered_model_is_described_and_an_old_one_keeps_its_words(
    demo: Path, store: MlflowClient
) -> None:
    log_model(demo, name="first", registered_model_name="described")
    assert "as of version 1" in str(store.get_registered_model("described").description)
    store.update_registered_model("described", "My own words.")
    log_model(demo, name="second", registered_model_name="described")
    assert store.get_registered_model("described").description == "My own words."
    assert "2.8 M" in str(store.get_model_version("described", "2").description)
