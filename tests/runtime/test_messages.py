"""Errors of native libraries are shown, without the folders of whoever runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError
from mlflow_phi3_onnx.runtime.messages import reason


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Load model from /home/a b/model.onnx failed", "Load model from model.onnx failed."),
        ("/a/b.onnx: bad, see /usr/include/c.h:12.", "b.onnx: bad, see c.h:12."),
        (r"C:\Users\ann\model.onnx is bad", "model.onnx is bad."),
        ("two\n  lines", "two lines."),
        ("", "RuntimeError."),
        ("n/a, model/layers.2/attn", "n/a, model/layers.2/attn."),
        ("x" * 301, "x" * 300 + "..."),
    ],
)
def test_what_is_shown_of_an_error(said: str, shown: str) -> None:
    assert reason(RuntimeError(said), Path("/home/a b")).rstrip(".") == shown.rstrip(".")


def test_what_onnxruntime_genai_does_not_accept_is_told(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo, folder)
    config: dict[str, Any] = json.loads((folder / "genai_config.json").read_text("utf-8"))
    config["model"]["type"] = "no_such_architecture"
    (folder / "genai_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(InvalidModelError, match="no_such_architecture") as raised:
        GenAIModel(folder)
    assert str(tmp_path) not in str(raised.value)
