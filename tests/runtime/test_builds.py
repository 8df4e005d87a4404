"""Builds of onnxruntime-genai that hold the same module, installed side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlflow_phi3_onnx

LOAD_TWICE = """
import mlflow_phi3_onnx
for _ in range(2):
    mlflow_phi3_onnx.GenAIModel(mlflow_phi3_onnx.demo_model_path()).close()
"""


@pytest.mark.parametrize("several", [False, True])
def test_builds_side_by_side_are_warned_of_once(tmp_path: Path, several: bool) -> None:
    if several:
        facts = tmp_path / "onnxruntime_genai_cuda-0.18.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Name: onnxruntime-genai-cuda\nVersion: 0.18.0\n")
    root = Path(mlflow_phi3_onnx.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_TWICE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, tmp_path)))},
        capture_output=True,
        text=True,
        check=True,
    )
    says = "onnxruntime-genai and onnxruntime-genai-cuda are installed side by side"
    assert done.stderr.count(says) == several
