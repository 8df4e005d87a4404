"""What an older onnxruntime-genai, the last for Python 3.10, does not know."""

from __future__ import annotations

import importlib.metadata

import pytest
from packaging.version import Version

__all__ = ["needs_new_genai"]

needs_new_genai = pytest.mark.skipif(
    Version(importlib.metadata.version("onnxruntime-genai")) < Version("0.18"),
    reason="an older onnxruntime-genai does not run such models",
)
