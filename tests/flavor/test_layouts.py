"""Models that earlier versions of the flavor saved can be loaded."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

from mlflow_phi3_onnx import FLAVOR_NAME, load_model, save_model
from mlflow_phi3_onnx.artifact.saved import SCHEMA_VERSION

LAYOUTS = Path(__file__).parents[1] / "fixtures"
PROMPT = "The capital of Spain is"


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_earlier_layout_is_loaded(version: int, demo: Path, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    shutil.copytree(demo, target / "model")
    mlmodel = yaml.safe_load((LAYOUTS / f"layout-{version}" / "MLmodel").read_text())
    section = mlmodel["flavors"][FLAVOR_NAME]
    assert section["schema_version"] == version
    # The demo model may have changed since, the keys have not.
    for name, facts in section["files"].items():
        content = (demo / name).read_bytes()
        facts.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    (target / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    with load_model(target) as model:
        answer = model.complete(PROMPT)["choices"][0]
        assert answer["text"].strip().startswith("Madrid")
        assert model.execution_provider == "cpu"
    pyfunc = mlflow.pyfunc.load_model(str(target))
    with pyfunc.get_raw_model():
        (response,) = pyfunc.predict({"prompt": PROMPT})
    assert response["choices"][0]["text"] == answer["text"]
    assert response["usage"]["completion_tokens"] <= 5  # the saved model_config holds


def test_an_earlier_layout_is_saved_again_in_this_one(saved: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(saved, old)
    mlmodel = yaml.safe_load((old / "MLmodel").read_text())
    section = mlmodel["flavors"][FLAVOR_NAME]
    for key in ("parameters", "precision", "execution_providers", "chat_template_sha256"):
        assert section.pop(key) is not None
    section["schema_version"] = 1
    (old / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    save_model(str(old), tmp_path / "new")
    new = yaml.safe_load((tmp_path / "new" / "MLmodel").read_text())["flavors"][FLAVOR_NAME]
    assert new["schema_version"] == SCHEMA_VERSION
    assert new["parameters"] > 1_000_000
    assert new["precision"] == "int4"
    assert new["execution_providers"] == ["cpu"]
