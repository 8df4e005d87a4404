"""Loading a saved model, natively and as a pyfunc, and what is refused to load."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import (
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    SourceNotFoundError,
    load_model,
    persist_pretrained_model,
)
from mlflow_phi3_onnx.artifact.saved import SCHEMA_VERSION

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

PROMPT = "The capital of Spain is"

Load = Callable[[str], object]

BOTH = pytest.mark.parametrize(
    "load", [load_model, mlflow.pyfunc.load_model], ids=["native", "pyfunc"]
)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved model to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pyfunc(saved: Path) -> Iterator[PyFuncModel]:
    """The chat model as a pyfunc."""
    model = mlflow.pyfunc.load_model(str(saved))
    with model.get_raw_model():
        yield model


def test_the_native_model_answers_as_before_it_was_saved(
    saved: Path, question: str, answer: str
) -> None:
    messages = [{"role": "user", "content": question}]
    with load_model(saved) as model:
        assert isinstance(model, GenAIModel)
        response = model.chat(messages, max_tokens=6)
    assert response["choices"][0]["message"]["content"] == answer


def test_pyfunc_answers_as_the_native_model(
    pyfunc: PyFuncModel, question: str, answer: str
) -> None:
    request = {"messages": [{"role": "user", "content": question}], "max_tokens": 6}
    assert pyfunc.predict(request)[0]["choices"][0]["message"]["content"] == answer


def test_pyfunc_streams_the_same_answer(pyfunc: PyFuncModel, question: str, answer: str) -> None:
    request = {"messages": [{"role": "user", "content": question}], "max_tokens": 6}
    chunks: list[Any] = list(pyfunc.predict_stream(request))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == answer


def test_pyfunc_text_answers_as_the_native_model(saved_text: Path, native: GenAIModel) -> None:
    text = mlflow.pyfunc.load_model(str(saved_text))
    expected = native.generate(PROMPT, temperature=0, max_tokens=4)
    params = {"temperature": 0, "max_tokens": 4}
    with text.get_raw_model():
        assert text.predict({"prompt": PROMPT}, params=params) == [expected]
        pieces: list[Any] = list(text.predict_stream({"prompt": PROMPT}, params=params))
    assert "".join(pieces) == expected


def test_pyfunc_gives_the_native_model_out(pyfunc: PyFuncModel) -> None:
    assert isinstance(pyfunc.get_raw_model(), GenAIModel)


def test_pyfunc_tells_what_was_saved(pyfunc: PyFuncModel, saved: Path) -> None:
    assert pyfunc.metadata.flavors == Model.load(str(saved)).flavors
    assert pyfunc.loader_module == "mlflow_phi3_onnx"


def test_the_pyfunc_wrapper_can_be_pickled(pyfunc: PyFuncModel, question: str) -> None:
    request = {"messages": [{"role": "user", "content": question}], "max_tokens": 3}
    wrapper: Any = pyfunc._model_impl  # pyright: ignore[reportPrivateUsage] - MLflow's stable developer API
    copy = cloudpickle.loads(cloudpickle.dumps(wrapper))
    with copy.get_raw_model():
        texts = [w.predict(request)[0]["choices"][0]["message"] for w in (wrapper, copy)]
    assert texts[0] == texts[1]


def test_the_native_model_needs_no_pickle(saved: Path, fresh_python: Any) -> None:
    code = """
import sys, mlflow_phi3_onnx
model = mlflow_phi3_onnx.load_model(sys.argv[1])
print(model.name)
"""
    assert fresh_python(code, saved, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false") == "phi3"


def test_pyfunc_needs_no_pickle(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with mlflow.pyfunc.load_model(str(saved)).get_raw_model() as model:
        assert model.name == "phi3"


def test_no_pickle_is_saved(saved: Path) -> None:
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    code = {".css", ".html", ".js", ".py", ".typed"}
    assert suffixes <= {"", ".data", ".jinja", ".json", ".onnx", ".txt", ".yaml", *code}


@BOTH
def test_a_relative_path_is_loaded(
    saved: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    assert load(saved.name)


@BOTH
def test_a_file_uri_is_loaded(saved: Path, load: Load) -> None:
    assert load(saved.as_uri())


@BOTH
def test_a_path_with_spaces_and_accents_is_loaded(saved: Path, tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "mañana is another day"
    shutil.copytree(saved, folder)
    assert load(str(folder))


def test_a_model_of_another_flavor_is_refused(copy: Path) -> None:
    mlmodel = yaml.safe_load((copy / "MLmodel").read_text())
    del mlmodel["flavors"]["mlflow_phi3_onnx"]
    (copy / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    with pytest.raises(MlflowException, match='does not have the "mlflow_phi3_onnx" flavor'):
        load_model(copy)


@BOTH
def test_a_folder_without_an_mlmodel_file_is_refused(demo: Path, load: Load) -> None:
    with pytest.raises(MlflowException, match="MLmodel"):
        load(str(demo))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("empty", "^empty is not the folder of a saved model: it has no MLmodel file. Give the"),
        ("file", "^file is not the folder of a saved model: it is a file. Give the folder that"),
        ("gone", "^model_uri: there is nothing at the path '.*gone'. Expected models:/<name>/"),
    ],
)
def test_a_place_without_a_saved_model_says_what_to_give(
    tmp_path: Path, place: str, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / place, str(tmp_path / place)):
        with pytest.raises((InvalidModelError, SourceNotFoundError), match=says):
            load_model(path)


@pytest.mark.parametrize(
    ("place", "came"), [("", "an empty string"), (None, "null"), (5, "5"), ([], "a list")]
)
def test_what_is_no_place_is_refused(place: Any, came: str) -> None:
    for function in (load_model, persist_pretrained_model):
        with pytest.raises(InvalidRequestError) as caught:
            function(place)
        assert caught.value.message == f"model_uri must be a path or a URI; got {came}."


@BOTH
def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path, load: Load) -> None:
    with pytest.raises((MlflowException, OSError), match="no_such"):
        load(str(tmp_path / "no_such"))


FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", "genai_config.json")


@BOTH
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, load: Load, name: str) -> None:
    (copy / "model" / name).unlink()
    with pytest.raises(InvalidModelError, match=f"has lost its file {name}"):
        load(str(copy))


@BOTH
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_short_is_named(copy: Path, load: Load, name: str) -> None:
    file = copy / "model" / name
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InvalidModelError, match=f"{name} has .* bytes, but .* were saved"):
        load(str(copy))


@BOTH
@pytest.mark.parametrize("name", ["../MLmodel", "/etc/hosts"])
def test_a_file_outside_the_model_is_refused(copy: Path, load: Load, name: str) -> None:
    mlmodel = yaml.safe_load((copy / "MLmodel").read_text())
    mlmodel["flavors"]["mlflow_phi3_onnx"]["files"][name] = {"size": 1, "sha256": ""}
    (copy / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    with pytest.raises(InvalidModelError, match="outside the model"):
        load(str(copy))


@pytest.mark.parametrize("data", ["..", "/", "../model"])
def test_a_data_folder_outside_the_artifact_is_refused(copy: Path, data: str) -> None:
    mlmodel = yaml.safe_load((copy / "MLmodel").read_text())
    mlmodel["flavors"]["mlflow_phi3_onnx"]["data"] = data
    (copy / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    shutil.copytree(copy / "model", copy.parent / "model")
    with pytest.raises(InvalidModelError):
        load_model(copy)


def test_a_newer_layout_is_refused(copy: Path) -> None:
    mlmodel = yaml.safe_load((copy / "MLmodel").read_text())
    mlmodel["flavors"]["mlflow_phi3_onnx"]["schema_version"] = SCHEMA_VERSION + 1
    (copy / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    with pytest.raises(InvalidModelError, match="newer"):
        load_model(copy)


def test_the_module_has_what_mlflow_asks_of_a_flavor() -> None:
    for name in ("save_model", "log_model", "load_model", "_load_pyfunc"):
        assert callable(getattr(mlflow_phi3_onnx, name))
    for name in ("get_default_pip_requirements", "get_default_conda_env"):
        assert getattr(mlflow_phi3_onnx, name)()
    assert mlflow_phi3_onnx.FLAVOR_NAME == "mlflow_phi3_onnx"
