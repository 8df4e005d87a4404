"""The example of a model's life in MLflow, against a tracking server of MLflow's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from benchmarks.serving import running

EXAMPLE = Path(__file__).parents[2] / "examples" / "mlops_loop.py"
SERVER = [
    *(sys.executable, "-m", "mlflow", "server", "--port", "{port}", "--workers", "1"),
    *("--backend-store-uri", "sqlite:///store.db", "--artifacts-destination", "artifacts"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)  # four models are logged and evaluated, and served twice
def test_the_loop_is_closed(tmp_path: Path, tracking: str) -> None:
    with running(SERVER, "/health", tmp_path) as (url, _):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            env={**os.environ, "MLFLOW_TRACKING_URI": url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "below the thresholds, not registered" in done.stdout
        assert "version 3, worse than the champion" in done.stdout
        mlflow.set_tracking_uri(url)
        try:
            _check(url)
        finally:
            mlflow.set_tracking_uri(tracking)


def _check(url: str) -> None:
    client = mlflow.MlflowClient(url, url)
    versions = {v.version: v for v in client.search_model_versions("name='capitals'")}
    assert {str(version) for version in versions} == {"1", "2", "3"}
    # Version 2 was promoted and rolled back; the one that is worse is the challenger.
    assert str(client.get_model_version_by_alias("capitals", "champion").version) == "1"
    assert str(client.get_model_version_by_alias("capitals", "challenger").version) == "3"
    scores = {
        str(number): {m.key: m.value for m in client.get_logged_model(v.model_id).metrics or []}
        for number, v in versions.items()
        if v.model_id is not None
    }
    assert scores["1"]["exact_match"] == pytest.approx(1 / 2)
    assert scores["2"]["exact_match"] == 1
    assert scores["3"]["exact_match"] == pytest.approx(5 / 6)
    found = mlflow.search_traces(
        locations=[client.get_experiment_by_name("mlops-loop").experiment_id],  # type: ignore[union-attr] - it is there
        return_type="list",
    )
    served = [trace for trace in found if trace.info.client_request_id]
    assert len(served) >= 3
    for trace in served:
        assert trace.data.spans[0].span_type == "CHAT_MODEL"
    judged = [a.name for trace in served for a in trace.info.assessments or []]
    assert {"knows", "finished"} <= set(judged)
