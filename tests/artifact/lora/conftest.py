"""A model with inputs for adapters, and two adapters for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlflow_phi3_onnx import GenAIModel
from tests.support.adapted import (
    FIELDS,
    Delta,
    open_for_adapters,
    parameters,
    random_deltas,
    told,
    write_adapter,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def deltas(demo: Path) -> dict[str, dict[str, Delta]]:
    """What each adapter adds to each layer."""
    return {name: random_deltas(demo, seed) for seed, name in enumerate(("warm", "cold"))}


@pytest.fixture(scope="session")
def warm(deltas: dict[str, dict[str, Delta]]) -> dict[str, Delta]:
    return deltas["warm"]


@pytest.fixture(scope="session")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, with inputs for adapters."""
    return open_for_adapters(demo, tmp_path_factory.mktemp("open") / "model")


@pytest.fixture(scope="session")
def files(
    deltas: dict[str, dict[str, Delta]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("files")
    return {
        name: write_adapter(work / f"{name}.onnx_adapter", parameters(delta))
        for name, delta in deltas.items()
    }


@pytest.fixture(scope="session")
def answers(folder: Path, files: dict[str, Path]) -> dict[str | None, str]:
    """What the model answers to FIELDS, without an adapter and with each."""
    with GenAIModel(folder, adapters=files) as model:
        return {name: told(model.chat(**FIELDS, adapter=name)) for name in (None, *files)}
