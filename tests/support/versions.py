"""What an older onnxruntime-genai, the last for Python 3.10, does not know."""

from __future__ import annotations

import pytest
from packaging.version import Version

from mlflow_phi3_onnx.flavor.requirements import runtime_version

__all__ = ["needs_new_genai"]

needs_new_genai = pytest.mark.skipif(
    Version(str(runtime_version())) < Version("0.18"),
    reason="an older onnxruntime-genai does not run such models",
)
