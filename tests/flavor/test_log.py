"""What log_model writes to MLflow's store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.genai import register_prompt
from mlflow.models import Model
from mlflow.models.auth_policy import AuthPolicy, SystemAuthPolicy
from mlflow.models.resources import DatabricksServingEndpoint

from mlflow_phi3_onnx import InvalidRequestError, SourceNotFoundError, log_model

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

pytestmark = pytest.mark.usefixtures("store")

CHAT = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
CONFIG = {"temperature": 0, "max_tokens": 2}


@pytest.fixture(scope="module")
def info(demo: Path, store: MlflowClient) -> ModelInfo:
    """A model that was logged in no run, with everything beside it."""
    assert store.get_experiment("0").lifecycle_stage == "active"
    return log_model(
        demo,
        name="shared",
        model_config=CONFIG,
        input_example=CHAT,
        metadata={"owner": "search"},
        params={"block_size": 32},
        tags={"stage": "trial", "number": 7},
        model_type="assistant",
    )


@pytest.fixture(scope="module")
def artifacts(info: ModelInfo) -> Path:
    """The shared model's folder in the artifact store."""
    return Path(str(logged(info).artifact_location).removeprefix("file://"))


@pytest.fixture
def mlflow_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What MLflow logs; its logger keeps it from pytest."""
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    return caplog


def logged(info: ModelInfo) -> LoggedModel:
    return mlflow.get_logged_model(str(info.model_id))


def all_logged(name: str) -> dict[str, LoggedModelStatus]:
    """The status of every logged model of a name, by id."""
    models = mlflow.search_logged_models(
        experiment_ids=["0"], filter_string=f"name = '{name}'", output_format="list"
    )
    return {model.model_id: model.status for model in models}


def test_the_model_is_ready(info: ModelInfo) -> None:
    assert logged(info).status == LoggedModelStatus.READY
    assert logged(info).name == "shared"


def test_the_uri_is_that_of_the_logged_model(info: ModelInfo) -> None:
    assert info.model_uri == f"models:/{info.model_id}"


def test_the_info_tells_the_flavors_and_the_signature(info: ModelInfo) -> None:
    assert {*info.flavors} == {"python_function", "mlflow_phi3_onnx"}
    assert info.signature is not None
    assert info.metadata == {"owner": "search", "task": "llm/v1/chat"}
    assert info.saved_input_example_info is not None


def test_params_tags_and_type_are_on_the_logged_model(info: ModelInfo) -> None:
    model = logged(info)
    assert model.params["block_size"] == "32"
    assert model.tags["stage"] == "trial"
    assert model.tags["number"] == "7"
    assert model.model_type == "assistant"


def test_no_run_is_made(info: ModelInfo) -> None:
    assert logged(info).source_run_id is None
    assert info.run_id in (None, "")


def test_the_artifact_store_holds_files_and_no_links(artifacts: Path, demo: Path) -> None:
    assert not any(path.is_symlink() for path in artifacts.rglob("*"))
    for file in demo.iterdir():
        assert (artifacts / "model" / file.name).read_bytes() == file.read_bytes()


def test_the_size_is_that_of_the_files_and_not_of_links(artifacts: Path) -> None:
    size = Model.load(str(artifacts)).model_size_bytes
    assert size is not None
    assert size > (artifacts / "model" / "model.onnx.data").stat().st_size


def test_the_mlmodel_file_names_the_logged_model(artifacts: Path, info: ModelInfo) -> None:
    model = Model.load(str(artifacts))
    assert model.model_id == info.model_id
    assert model.metadata == {"owner": "search", "task": "llm/v1/chat"}


def test_a_run_gets_the_model_as_its_output_at_a_step(demo: Path, store: MlflowClient) -> None:
    with mlflow.start_run() as run:
        info = log_model(demo, name="in_a_run", step=3)
    outputs = store.get_run(run.info.run_id).outputs
    assert outputs is not None
    assert [(m.model_id, m.step) for m in outputs.model_outputs] == [(info.model_id, 3)]
    assert logged(info).source_run_id == run.info.run_id


def test_the_config_is_logged_as_parameters_of_the_run(demo: Path, store: MlflowClient) -> None:
    with mlflow.start_run() as run:
        log_model(demo, name="with_config", model_config=CONFIG)
    assert store.get_run(run.info.run_id).data.params == {"temperature": "0", "max_tokens": "2"}


def test_a_config_file_is_logged_as_parameters_of_the_run(
    demo: Path, store: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("max_tokens: 2\n")
    with mlflow.start_run() as run:
        log_model(demo, name="with_file", model_config=str(tmp_path / "config.yaml"))
    assert store.get_run(run.info.run_id).data.params == {"max_tokens": "2"}


def test_a_run_that_is_not_active_can_be_named(demo: Path, store: MlflowClient) -> None:
    run_id = store.create_run("0").info.run_id
    info = log_model(demo, name="named_run", run_id=run_id)
    assert logged(info).source_run_id == run_id
    assert mlflow.active_run() is None


def test_a_logged_model_that_waits_can_be_written_to(demo: Path) -> None:
    waiting = mlflow.initialize_logged_model(name="waiting")
    info = log_model(demo, model_id=waiting.model_id)
    assert info.model_id == waiting.model_id
    assert logged(info).status == LoggedModelStatus.READY


def test_an_external_model_becomes_one_with_artifacts(demo: Path) -> None:
    external = mlflow.create_external_model(name="external")
    info = log_model(demo, model_id=external.model_id)
    assert "mlflow.model.isExternal" not in logged(info).tags
    assert Model.load(info.model_uri).flavors["mlflow_phi3_onnx"]["task"] == "llm/v1/chat"


def test_the_old_name_of_name_works(demo: Path, mlflow_log: pytest.LogCaptureFixture) -> None:
    info = log_model(demo, "old")
    assert logged(info).name == "old"
    assert "`artifact_path` is deprecated" in mlflow_log.text


def test_both_names_are_refused(demo: Path) -> None:
    with pytest.raises(InvalidRequestError, match="Give name only"):
        log_model(demo, "both", name="both")
    assert not all_logged("both")


def test_prompts_are_linked(demo: Path, store: MlflowClient) -> None:
    prompt: Any = register_prompt("greeting", "Hello {{name}}")
    register_prompt("farewell", "Goodbye")
    info = log_model(demo, name="with_prompts", prompts=[prompt, "prompts:/farewell/1"])
    assert info.prompts == ["prompts:/greeting/1", "prompts:/farewell/1"]
    assert '"greeting"' in store.get_logged_model(str(info.model_id)).tags["mlflow.linkedPrompts"]


def test_resources_are_saved(demo: Path) -> None:
    info = log_model(demo, name="with_resources", resources=[DatabricksServingEndpoint("judge")])
    resources: Any = Model.load(info.model_uri).resources
    assert resources["databricks"] == {"serving_endpoint": [{"name": "judge"}]}


def test_resources_and_a_policy_are_refused(demo: Path) -> None:
    policy = AuthPolicy(system_auth_policy=SystemAuthPolicy(resources=[]))
    with pytest.raises(InvalidRequestError, match="Give one of them"):
        log_model(demo, name="policy", resources=[], auth_policy=policy)
    assert not all_logged("policy")


def test_extra_files_and_code_are_logged(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("A toy.")
    (tmp_path / "helper.py").write_text("ANSWER = 42\n")
    files = [str(tmp_path / "card.md")]
    info = log_model(
        demo, name="files", extra_files=files, code_paths=[str(tmp_path / "helper.py")]
    )
    root = Path(download_artifacts(info.model_uri))
    assert (root / "extra_files" / "card.md").is_file()
    assert (root / "code" / "helper.py").is_file()


def test_requirements_are_logged(demo: Path) -> None:
    info = log_model(demo, name="requirements", pip_requirements=["foo"])
    root = Path(download_artifacts(info.model_uri))
    assert (root / "requirements.txt").read_text().splitlines()[1:] == ["foo"]


def test_the_model_is_not_loaded_when_it_is_logged(demo: Path, fresh_python: Any) -> None:
    code = """
import sys, mlflow, mlflow_phi3_onnx, onnxruntime_genai
def load(*_):
    raise AssertionError("a model is loaded")
onnxruntime_genai.Model = load  # its configuration is parsed by the library, and no more
example = {"messages": [{"role": "user", "content": "Hello"}]}
mlflow_phi3_onnx.log_model(sys.argv[1], name="quick", input_example=example)
print(sorted({"onnxruntime", "torch"} & set(sys.modules)))
"""
    uri = mlflow.get_tracking_uri()
    assert fresh_python(code, demo, MLFLOW_TRACKING_URI=uri) == "[]"
    assert [*all_logged("quick").values()] == [LoggedModelStatus.READY]


def test_the_example_is_tried_as_a_server_would_where_asked_for(
    demo: Path, mlflow_log: pytest.LogCaptureFixture
) -> None:
    example = {**CHAT, "timeout": 1e-6}
    log_model(demo, name="tried", input_example=example, validate_serving_input=True)
    assert "Failed to validate serving input example" in mlflow_log.text
    assert "timeout" in mlflow_log.text


def test_an_example_that_works_passes_in_silence(
    demo: Path, mlflow_log: pytest.LogCaptureFixture
) -> None:
    log_model(
        demo,
        name="passed",
        model_config={"max_tokens": 1},
        input_example=CHAT,
        validate_serving_input=True,
    )
    assert "Failed" not in mlflow_log.text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param({"task": "chat"}, InvalidRequestError, id="task"),
        pytest.param({"metadata": {"task": "x"}}, InvalidRequestError, id="metadata"),
        pytest.param({"model_config": {"color": 1}}, InvalidRequestError, id="model_config"),
        pytest.param({"model_config": "no.yaml"}, MlflowException, id="model_config file"),
        pytest.param({"model": "no_such_folder"}, SourceNotFoundError, id="model"),
        pytest.param({"signature": "text"}, InvalidRequestError, id="signature"),
        pytest.param({"conda_env": {}, "pip_requirements": []}, ValueError, id="two environments"),
        pytest.param({"code_paths": "code.py"}, InvalidRequestError, id="code_paths"),
        pytest.param({"extra_files": ["no.txt"]}, InvalidRequestError, id="extra_files"),
        pytest.param({"conda_env": "no_such.yaml"}, OSError, id="conda_env file"),
        pytest.param({"name": "a/b"}, MlflowException, id="name"),
    ],
)
def test_a_bad_argument_is_refused_before_a_logged_model_is_made(
    demo: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    before = all_logged("bad")
    merged: dict[str, Any] = {"model": demo, "name": "bad", **arguments}
    with pytest.raises(error):
        log_model(**merged)
    assert all_logged("bad") == before


def test_a_logged_model_that_fails_late_is_marked_as_failed(demo: Path) -> None:
    with pytest.raises((OSError, MlflowException), match=r"no_such\.txt"):
        log_model(demo, name="late", extra_files=["file:///no_such.txt"])
    assert [*all_logged("late").values()] == [LoggedModelStatus.FAILED]
