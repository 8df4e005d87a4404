"""Execution providers, and the distributions that bring them."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress

__all__ = [
    "DISTRIBUTIONS",
    "PROVIDERS",
    "installed_distribution",
    "installed_distributions",
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


def installed_distributions() -> list[str]:
    """List the installed distributions that provide ``onnxruntime_genai``; there should be one."""
    found: list[str] = []
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            found.append(name)
    return found


def installed_distribution() -> str | None:
    """Name the installed distribution that provides ``onnxruntime_genai``, if there is one."""
    return next(iter(installed_distributions()), None)


def provider_name(text: str) -> str:
    """Return the short name of an execution provider: ``cuda`` for ``CUDAExecutionProvider``."""
    return text.lower().removesuffix("executionprovider")
