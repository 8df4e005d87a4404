"""A native model that is pickled, as Ray does to send it to a worker, is loaded again there."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, load_model, save_model

UNPICKLE = """
import pickle, sys
with pickle.load(sys.stdin.buffer) as model:
    print(model.generate("The capital of Spain is"), model.adapters, dict(model.origin))
"""


def test_a_copy_in_another_process_is_the_same_model(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with GenAIModel("model", model_config={"loop": "slots", "stop": ["."]}) as model:
        expected = model.generate("The capital of Spain is")
        content = pickle.dumps(model)
    assert not expected.endswith(".")
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLE], input=content, capture_output=True, check=True, cwd="/"
    )
    assert done.stdout.decode() == f"{expected} () {{}}\n"


def test_a_saved_model_keeps_its_configuration_and_origin(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "saved", model_config={"max_tokens": 2})
    with load_model(tmp_path / "saved") as model, pickle.loads(pickle.dumps(model)) as copy:  # noqa: S301
        assert copy.origin == {"kind": "folder"}
        assert copy.chat([{"role": "user", "content": "Hello"}])["usage"]["completion_tokens"] == 2


def test_a_copy_is_checked_like_the_model(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    with GenAIModel(folder) as model:
        content = pickle.dumps(model)
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InvalidModelError, match="not a whole ONNX model"):
        pickle.loads(content)  # noqa: S301
