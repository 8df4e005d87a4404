"""What a saved model's folder holds, and what is left of one that cannot be saved."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidModelError, InvalidRequestError, save_model
from mlflow_phi3_onnx.artifact.folder import read_folder
from tests.support.edits import edit_json

TASKS = ("llm/v1/chat", "llm/v1/completions", "text-generation")
EXAMPLE = {"input_example.json", "serving_input_example.json"}
ENVIRONMENT = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
CHAT = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}


def tree(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def flavors(path: Path) -> dict[str, Any]:
    return Model.load(str(path)).flavors


def test_the_folder_holds_the_model_its_environment_and_this_package(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == ENVIRONMENT | EXAMPLE | {"model", "code"}


def test_the_model_files_are_saved_unchanged(saved: Path, demo: Path) -> None:
    assert tree(saved / "model") == tree(demo)


def test_pyfunc_flavor_tells_how_to_load_and_serve_it(saved: Path) -> None:
    pyfunc = flavors(saved)["python_function"]
    assert pyfunc["loader_module"] == "mlflow_phi3_onnx"
    assert pyfunc["data"] == "model"
    assert pyfunc["code"] == "code"
    assert pyfunc["env"] == {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    assert pyfunc["streamable"] is True


def test_flavor_section_tells_the_facts_of_the_model(saved: Path, demo: Path) -> None:
    config = json.loads((demo / "genai_config.json").read_text())["model"]
    flavor = flavors(saved)[mlflow_phi3_onnx.FLAVOR_NAME]
    files = flavor.pop("files")
    assert set(files) == set(tree(demo))
    assert flavor == {
        "schema_version": 2,
        "onnxruntime_genai_version": onnxruntime_genai.__version__,
        "model_type": config["type"],
        "parameters": read_folder(demo).graph.parameters,
        "precision": "int4",
        "execution_providers": ["cpu"],
        "chat_template_sha256": flavor["chat_template_sha256"],
        "context_length": config["context_length"],
        "vocab_size": config["vocab_size"],
        "source": {"kind": "folder"},
        "task": "llm/v1/chat",
        "data": "model",
        "code": "code",
    }


def test_flavor_section_lists_every_file_with_size_and_sha256(saved: Path) -> None:
    files = flavors(saved)[mlflow_phi3_onnx.FLAVOR_NAME]["files"]
    assert files == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in tree(saved / "model").items()
    }


def test_model_size_is_that_of_the_tree(saved: Path) -> None:
    content = {k: v for k, v in tree(saved).items() if k not in ENVIRONMENT}
    assert Model.load(str(saved)).model_size_bytes == sum(map(len, content.values()))


def test_hidden_files_are_left_out(demo: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo, source)
    (source / ".cache").mkdir()
    (source / ".cache" / "lock").touch()
    (source / ".gitattributes").touch()
    save_model(source, tmp_path / "saved")
    assert tree(tmp_path / "saved" / "model") == tree(demo)


def test_links_are_saved_as_the_files_they_lead_to(demo: Path, tmp_path: Path) -> None:
    """As those of the hub's cache do, and those that stay in the folder."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(demo.iterdir()):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs", str(number)))
    (snapshot / "tokenizer.json").rename(snapshot / ".hidden.json")
    (snapshot / "tokenizer.json").symlink_to(".hidden.json")
    save_model(snapshot, tmp_path / "saved")
    assert tree(tmp_path / "saved" / "model") == tree(demo)
    assert not any(path.is_symlink() for path in (tmp_path / "saved").rglob("*"))


def test_only_a_snapshot_of_the_hub_s_cache_has_links_to_its_blobs(
    demo: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(demo, tmp_path / "models" / "abc"))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "key").write_text("TOPSECRET")
    (source / "NOTICE").symlink_to(tmp_path / "blobs" / "key")
    with pytest.raises(InvalidModelError, match=r"^NOTICE is a symbolic link that leads out"):
        save_model(source, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("where", ["NOTICE.txt", "notes/NOTICE.txt", "folder"])
def test_a_link_that_leads_out_publishes_nothing(demo: Path, tmp_path: Path, where: str) -> None:
    source = Path(shutil.copytree(demo, tmp_path / "model"))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("TOPSECRET")
    (source / where).parent.mkdir(exist_ok=True)
    (source / where).symlink_to(tmp_path / "secret" / ("" if where == "folder" else "key"))
    with pytest.raises(InvalidModelError, match=f"^{where} is a symbolic link that leads out"):
        save_model(source, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_saved_inside_its_own_folder_does_not_hold_itself(
    demo: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo, source)
    save_model(source, source / "saved", input_example=CHAT)
    assert tree(source / "saved" / "model") == tree(demo)


def test_a_path_may_be_a_string_and_relative(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(str(demo), "saved")
    assert tree(tmp_path / "saved" / "model") == tree(demo)


def test_missing_parents_are_made(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "MLmodel").is_file()


def test_an_empty_folder_may_be_saved_to(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path)
    assert (tmp_path / "MLmodel").is_file()


@pytest.mark.parametrize("task", TASKS)
def test_the_task_is_saved_where_mlflow_looks_for_it(demo: Path, tmp_path: Path, task: Any) -> None:
    save_model(demo, tmp_path, task=task)
    model = Model.load(str(tmp_path))
    assert model.metadata == {"task": task}
    assert model.flavors[mlflow_phi3_onnx.FLAVOR_NAME]["task"] == task


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_signature_by_default(demo: Path, tmp_path: Path, task: Any) -> None:
    save_model(demo, tmp_path, task=task)
    signature = Model.load(str(tmp_path)).signature
    assert signature is not None
    if task == "llm/v1/chat":
        assert signature.inputs.required_input_names() == ["messages"]
    else:
        assert signature.inputs is None  # a prompt comes in many forms
    assert signature.outputs is not None
    assert signature.params is not None


def test_signature_false_saves_none(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, signature=False)
    assert Model.load(str(tmp_path)).signature is None


def test_signature_false_saves_none_beside_an_example(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, signature=False, input_example=CHAT)
    assert Model.load(str(tmp_path)).signature is None


def test_a_signature_of_your_own_is_saved(demo: Path, tmp_path: Path) -> None:
    own = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string, "answer")]),
    )
    save_model(demo, tmp_path, task="text-generation", signature=own)
    assert Model.load(str(tmp_path)).signature == own


def test_what_is_no_signature_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="signature"):
        save_model(demo, tmp_path, signature={"inputs": "prompt"})  # type: ignore[arg-type] - the wrong type is the point


def test_an_unknown_task_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"task must be one of llm/v1/chat, .*embeddings"):
        save_model(demo, tmp_path, task="llm/v1/embeddings")  # type: ignore[arg-type] - the wrong value is the point


def test_metadata_that_contradicts_the_task_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="metadata says that the task"):
        save_model(demo, tmp_path, metadata={"task": "llm/v1/completions"})


def test_metadata_is_saved_beside_the_task(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, metadata={"task": "llm/v1/chat", "owner": {"team": "search"}})
    metadata = Model.load(str(tmp_path)).metadata
    assert metadata == {"task": "llm/v1/chat", "owner": {"team": "search"}}


def test_metadata_of_the_caller_is_not_changed(demo: Path, tmp_path: Path) -> None:
    metadata = {"owner": "search"}
    save_model(demo, tmp_path, metadata=metadata)
    assert metadata == {"owner": "search"}


@pytest.mark.parametrize(
    "example",
    [
        CHAT,
        [CHAT, {**CHAT, "stop": ["."], "temperature": 0.5}],
        {
            **CHAT,
            "logit_bias": {"7": -1},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    ],
    ids=["one", "several", "nested"],
)
def test_an_input_example_is_saved(demo: Path, tmp_path: Path, example: Any) -> None:
    save_model(demo, tmp_path, input_example=example)
    assert Model.load(str(tmp_path)).load_input_example(str(tmp_path)) == example


# MLflow compares the column names with a range, which pandas 3 deprecates.
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")
def test_a_data_frame_is_an_input_example(demo: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["The capital of Spain is", "Spain"]})
    save_model(demo, tmp_path, task="text-generation", input_example=frame)
    loaded: Any = Model.load(str(tmp_path)).load_input_example(str(tmp_path))
    pd.testing.assert_frame_equal(loaded, frame, check_dtype=False)


def test_params_of_an_input_example_are_saved(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, input_example=(CHAT, {"temperature": np.float32(0.5)}))
    model = Model.load(str(tmp_path))
    assert model.load_input_example_params(str(tmp_path)) == {"temperature": 0.5}
    assert json.loads(str(model.get_serving_input(str(tmp_path)))) == {**CHAT, "temperature": 0.5}


def test_extra_files_are_saved_and_listed(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("A toy.")
    (tmp_path / "LICENSE").write_text("MIT")
    files = [str(tmp_path / "card.md"), (tmp_path / "LICENSE").as_uri()]
    save_model(demo, tmp_path / "saved", extra_files=files)
    assert tree(tmp_path / "saved" / "extra_files") == {"card.md": b"A toy.", "LICENSE": b"MIT"}
    listed = flavors(tmp_path / "saved")[mlflow_phi3_onnx.FLAVOR_NAME]["extra_files"]
    assert listed == [{"path": "extra_files/card.md"}, {"path": "extra_files/LICENSE"}]


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MlflowException, match="not empty"):
        save_model(demo, tmp_path)
    assert tree(tmp_path) == {"mine.txt": b"mine"}


def test_a_file_at_the_path_is_refused_and_left_alone(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MlflowException, match=r"mine\.txt"):
        save_model(demo, tmp_path / "mine.txt")
    assert tree(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("existed", [True, False], ids=["empty folder", "no folder"])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param({"task": "chat"}, InvalidRequestError, id="task"),
        pytest.param({"model_config": {"color": 1}}, InvalidRequestError, id="model_config"),
        pytest.param({"code_paths": "code.py"}, InvalidRequestError, id="code_paths"),
        pytest.param({"code_paths": ["no_such.py"]}, MlflowException, id="code file"),
        pytest.param({"input_example": object()}, MlflowException, id="input_example"),
        pytest.param({"extra_files": ["no_such.txt"]}, InvalidRequestError, id="extra file"),
        pytest.param({"conda_env": "no_such.yaml"}, OSError, id="conda_env"),
        pytest.param({"pip_requirements": ["-r no_such.txt"]}, OSError, id="pip_requirements"),
        pytest.param({"metadata": {"owner": object()}}, Exception, id="metadata"),
    ],
)
def test_a_failed_save_leaves_nothing_behind(
    demo: Path, tmp_path: Path, arguments: dict[str, Any], error: Any, existed: bool
) -> None:
    path = tmp_path / "saved"
    if existed:
        path.mkdir()
    with pytest.raises(error):
        save_model(demo, path, **arguments)
    assert path.exists() == existed
    assert tree(tmp_path) == {}


def test_a_failed_save_keeps_a_link_to_an_empty_folder(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with pytest.raises(OSError, match=r"no_such\.yaml"):
        save_model(demo, tmp_path / "link", conda_env="no_such.yaml")
    assert (tmp_path / "link").readlink() == tmp_path / "disk"
    assert tree(tmp_path / "disk") == {}


def test_a_failed_save_keeps_the_folder_s_mode(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    path.mkdir(mode=0o700)
    with pytest.raises(OSError, match=r"no_such\.yaml"):
        save_model(demo, path, conda_env="no_such.yaml")
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidModelError, match=r"no genai_config\.json"):
        save_model(tmp_path / "empty", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "foo"}, "Unsupported model_type in config.json: foo"),
        ({"encoder": {"filename": "model.onnx"}}, "model.encoder is set"),
    ],
)
def test_a_model_that_could_not_be_loaded_is_refused_in_the_same_words(
    demo: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    edit_json(folder / "genai_config.json", lambda config: config["model"].update(change))
    with pytest.raises(InvalidModelError, match=says) as loading:
        GenAIModel(folder)
    with pytest.raises(InvalidModelError) as saving:
        save_model(folder, tmp_path / "saved")
    assert str(saving.value) == str(loading.value)
    assert not (tmp_path / "saved").exists()


def test_what_is_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="got 7"):
        save_model(7, tmp_path / "saved")  # type: ignore[arg-type] - the wrong type is the point
    assert not (tmp_path / "saved").exists()
