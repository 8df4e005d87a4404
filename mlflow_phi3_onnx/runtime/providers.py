"""Execution providers, and the distributions that bring them."""

from __future__ import annotations

import importlib.metadata

__all__ = [
    "DISTRIBUTIONS",
    "PROVIDERS",
    "installed_distribution",
    "provider_name",
]

DISTRIBUTIONS = (
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "onnxruntime-genai-directml",
)
"""The distributions that provide ``onnxruntime_genai``, the CPU one first."""

PROVIDERS = (
    *("nvtensorrtrtx", "cuda", "rocm", "dml", "qnn", "openvino", "vitisai", "webgpu"),
    "cpu",
)
"""The execution providers of onnxruntime-genai, those that are chosen first at the front."""


def installed_distribution() -> str | None:
    """Name the installed distribution that provides ``onnxruntime_genai``, if there is one."""
    for name in DISTRIBUTIONS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return None


def provider_name(text: str) -> str:
    """Return the short name of an execution provider: ``cuda`` for ``CUDAExecutionProvider``."""
    return text.lower().removesuffix("executionprovider")
