"""Code that travels with a model: the user's code_paths, and this package where pip has no name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import InvalidRequestError, load_model, save_model

PACKAGE = Path(mlflow_phi3_onnx.__file__).parent

# Loads a saved model with pyfunc and prints where the package came from and what was answered.
SCORE = """
import sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import mlflow_phi3_onnx
print(mlflow_phi3_onnx.__file__)
request = {"messages": [{"role": "user", "content": sys.argv[2]}], "max_tokens": 6}
print(model.predict(request)[0]["choices"][0]["message"]["content"])
"""


def own_source(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    names = {file.relative_to(path).as_posix(): file for file in files}
    return {k: v.read_bytes() for k, v in names.items() if not k.startswith("demo_model/")}


def test_the_source_of_this_package_is_saved_without_the_demo_weights(saved: Path) -> None:
    copy = saved / "code" / "mlflow_phi3_onnx"
    assert own_source(copy) == own_source(PACKAGE)
    assert not (copy / "demo_model").exists()
    assert not list(copy.rglob("*.py[co]"))


def test_the_saved_source_runs_where_this_package_is_not_installed(
    saved: Path, question: str, answer: str, fresh_python: Any
) -> None:
    origin, text = fresh_python(SCORE, saved, question, package=False).split("\n")
    assert Path(origin) == saved / "code" / "mlflow_phi3_onnx" / "__init__.py"
    assert text.strip() == answer.strip()


def test_the_saved_source_has_no_demo_model_to_give(saved: Path, fresh_python: Any) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import mlflow_phi3_onnx as flavor
try:
    flavor.demo_model_path()
except flavor.InvalidModelError as error:
    print(error)
"""
    message = fresh_python(code, saved / "code", package=False)
    assert message == "This copy of mlflow_phi3_onnx came without its demo model."


def test_a_model_saved_by_the_saved_source_runs_too(
    saved: Path, tmp_path: Path, question: str, answer: str, fresh_python: Any
) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import mlflow_phi3_onnx
mlflow_phi3_onnx.save_model(sys.argv[2], sys.argv[3], model_config={"temperature": 0})
"""
    fresh_python(code, saved / "code", saved / "model", tmp_path / "again", package=False)
    printed = fresh_python(SCORE, tmp_path / "again", question, package=False)
    assert printed.split("\n")[1].strip() == answer.strip()


def test_code_paths_are_copied(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("ANSWER = 42\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.py").write_text("ANSWER = 43\n")
    paths = [str(tmp_path / "helper.py"), str(tmp_path / "folder")]
    save_model(demo, tmp_path / "saved", code_paths=paths)
    code = tmp_path / "saved" / "code"
    assert (code / "helper.py").read_text() == "ANSWER = 42\n"
    assert (code / "folder" / "inner.py").read_text() == "ANSWER = 43\n"
    assert (code / "mlflow_phi3_onnx" / "__init__.py").is_file()
    flavors = Model.load(str(tmp_path / "saved")).flavors
    assert flavors["python_function"]["code"] == flavors["mlflow_phi3_onnx"]["code"] == "code"


def test_code_paths_can_be_imported_after_the_native_load_and_replace_nothing(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("code_of_a_user", "colorsys"):
        (tmp_path / f"{name}.py").write_text("ORIGIN = 'the model'\n")
    paths = [str(tmp_path / f"{name}.py") for name in ("code_of_a_user", "colorsys")]
    save_model(demo, tmp_path / "saved", code_paths=paths)
    for _ in range(2):
        mlflow_phi3_onnx.load_model(tmp_path / "saved").close()
    assert sys.path.count(str(tmp_path / "saved" / "code")) == 1
    assert "code_of_a_user" not in sys.modules
    assert importlib.import_module("code_of_a_user").ORIGIN == "the model"
    assert not hasattr(importlib.import_module("colorsys"), "ORIGIN")


def test_code_paths_are_importable_where_pyfunc_has_loaded_the_model(
    demo: Path, tmp_path: Path
) -> None:
    (tmp_path / "helper_of_a_user.py").write_text("ANSWER = 42\n")
    save_model(demo, tmp_path / "saved", code_paths=[str(tmp_path / "helper_of_a_user.py")])
    with mlflow.pyfunc.load_model(str(tmp_path / "saved")).get_raw_model():
        helper: Any = importlib.import_module("helper_of_a_user")
    assert helper.ANSWER == 42
    assert Path(helper.__file__).parent == tmp_path / "saved" / "code"


def test_the_native_model_runs_no_saved_code(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bad.py").write_text("raise SystemExit('ran')\n")
    save_model(demo, tmp_path / "saved", code_paths=[str(tmp_path / "bad.py")])
    (tmp_path / "saved" / "code" / "mlflow_phi3_onnx" / "__init__.py").write_text("1 / 0")
    before = list(sys.path)
    with load_model(tmp_path / "saved") as model:
        assert model.generate("Spain", max_tokens=1)
    assert sys.path == [*before, str(tmp_path / "saved" / "code")]
    assert "bad" not in sys.modules


def test_a_code_path_that_is_missing_is_named(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(MlflowException, match=r"no_such\.py"):
        save_model(demo, tmp_path / "saved", code_paths=["no_such.py"])


def test_code_paths_that_are_no_list_are_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequestError, match="code_paths must be a list of paths; got a string"
    ):
        save_model(demo, tmp_path / "saved", code_paths="helper.py")  # type: ignore[arg-type] - the wrong type is the point


def test_a_copy_of_this_package_among_code_paths_is_saved_once(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "saved", code_paths=[str(PACKAGE)])
    assert own_source(tmp_path / "saved" / "code" / "mlflow_phi3_onnx") == own_source(PACKAGE)


def test_a_saved_model_is_a_model_folder_again(saved: Path, demo: Path, tmp_path: Path) -> None:
    save_model(saved / "model", tmp_path / "again")
    assert {p.name for p in (tmp_path / "again" / "model").iterdir()} == {
        p.name for p in demo.iterdir()
    }


def test_the_folder_of_a_saved_model_stands_for_the_model_in_it(
    saved: Path, demo: Path, tmp_path: Path
) -> None:
    save_model(saved, tmp_path / "again")
    assert {p.name for p in (tmp_path / "again" / "model").iterdir()} == {
        p.name for p in demo.iterdir()
    }
