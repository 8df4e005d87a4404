"""What a run ran on."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

import mlflow_phi3_onnx
from mlflow_phi3_onnx.runtime.machine import available_threads

__all__ = ["describe", "load_average"]

PACKAGES = (
    "mlflow",
    "numpy",
    "onnxruntime",
    "onnxruntime-genai",
    "tokenizers",
    "torch",
    "transformers",
)
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd")


def describe() -> dict[str, Any]:
    """Describe the machine, the versions and the time."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "processor": _processor(),
        "instructions": [name for name in INSTRUCTIONS if name in _flags()],
        "processors": available_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "version": mlflow_phi3_onnx.__version__,
        "commit": _commit(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def load_average() -> float | None:
    """Return how many threads wanted to run during the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(values, "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
