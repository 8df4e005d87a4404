"""What a logged model needs where it is served, this package included."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.runtime.providers import DISTRIBUTIONS, installed_distribution

__all__ = [
    "bundle_source",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "own_requirement",
    "runtime_version",
]

DISTRIBUTION = "mlflow-phi3-onnx"

DEPENDENCIES = (
    "click",
    "cloudpickle",
    "fastapi",
    "huggingface-hub",
    "jinja2",
    "llguidance",
    "numpy",
    "packaging",
    "pandas",
    "prometheus-client",
    "psutil",
    "pyyaml",
    "tokenizers",
    "tqdm",
    "uvicorn",
)
"""What the package needs besides mlflow and onnxruntime-genai, as in ``pyproject.toml``."""


def get_default_pip_requirements() -> list[str]:
    """List the pip requirements that a model of this flavor is saved with by default.

    Returns:
        Requirements pinned to what is installed here. This package is among them where pip can
        find it by name; otherwise its source is saved with the model.
    """
    runtime = installed_distribution() or DISTRIBUTIONS[0]
    own = own_requirement()
    others = ("tokenizers",) if own else DEPENDENCIES
    pinned = [_pinned(name) for name in (runtime, *others)]
    return [own, *pinned] if own else pinned


def get_default_conda_env() -> dict[str, Any]:
    """Build the conda environment that a model of this flavor is saved with by default."""
    environment: Any = mlflow_compat.mlflow_conda_env(
        additional_pip_deps=get_default_pip_requirements()
    )
    return environment


def runtime_version() -> str | None:
    """Tell the installed version of ONNX Runtime GenAI, if it is installed."""
    runtime = installed_distribution()
    return importlib.metadata.version(runtime) if runtime else None


def own_requirement() -> str | None:
    """Name this package so that pip can install it elsewhere, or None where it cannot be named.

    It can be named when it came from a package index or a version-control URL (PEP 610). It cannot
    when it was installed from a local folder or file, or is not installed; nor when ONNX Runtime
    GenAI is the CUDA or DirectML build, because the name would bring in the CPU build too. Then
    its source goes along with the model.
    """
    if installed_distribution() not in (DISTRIBUTIONS[0], None):
        return None
    try:
        origin = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    if origin is None:
        return f"{DISTRIBUTION}=={__version__}"
    facts = json.loads(origin)
    url = facts["url"]
    if vcs := facts.get("vcs_info"):
        folder = f"#subdirectory={facts['subdirectory']}" if facts.get("subdirectory") else ""
        return f"{DISTRIBUTION} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{folder}"
    if "archive_info" in facts and not url.startswith("file:"):
        return f"{DISTRIBUTION} @ {url}"
    return None


def bundle_source(path: Path) -> None:
    """Copy this package's source, without the demo model, into a folder."""
    package = Path(__file__).parents[1]
    shutil.copytree(
        package,
        path / package.name,
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "demo_model"),
        dirs_exist_ok=True,
    )


def _pinned(name: str) -> str:
    """Pin a distribution to the version here; one that is not here cannot be pinned."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name
    return mlflow_compat.pinned_requirement(name)
