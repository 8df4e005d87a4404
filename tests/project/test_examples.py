"""The examples, run as a newcomer runs them. None of them may write into the repository."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import nbformat
import pytest
from mlflow.artifacts import load_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "custom_python_wrapper.ipynb"
PIPELINE_NOTEBOOK = EXAMPLES / "transformer_pipeline.ipynb"
ATOM_JOKE = (
    "Why do protons never win at hide and seek? "
    "They sit still in the middle, while the electrons are everywhere at once."
)

# What comes before "python" in the shell that runs the examples, as in an activated environment.
SHELL = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}

needs_export = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "onnx_ir")),
    reason="converting a model needs the export extra",
)


def files() -> set[Path]:
    """List the examples' files, and what MLflow writes where nobody told it where to write."""
    strays = [ROOT / name for name in ("mlflow.db", "mlruns", "mlartifacts")]
    return {*EXAMPLES.rglob("*"), *(path for path in strays if path.exists())}


@pytest.fixture(autouse=True)
def repository() -> Iterator[None]:
    """Fails a test that leaves something in the repository."""
    before = files()
    yield
    assert files() == before


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={
            **os.environ,
            **SHELL,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_quickstart_prints_answers_and_leaves_the_users_mlflow_alone(tmp_path: Path) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    own_store = f"sqlite:///{here / 'own.db'}"
    done = run(
        EXAMPLES / "quickstart.py",
        cwd=here,
        TMPDIR=str(temporary),
        TEMP=str(temporary),
        MLFLOW_TRACKING_URI=own_store,
        MLFLOW_REGISTRY_URI=own_store,
        MLFLOW_EXPERIMENT_NAME="own",
    )
    assert done.stdout.count("   Answer:   The capital of Spain is Madrid.\n") == 2
    assert "   Usage:    {'prompt_tokens': " in done.stdout
    assert f"   {ATOM_JOKE}\n" in done.stdout
    assert done.stderr.splitlines() == [
        "Successfully registered model 'phi3'.",
        "Created version '1' of model 'phi3'.",
    ]
    (folder,) = temporary.glob("phi3-quickstart-*")
    assert f"Everything is in {folder}." in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    pages = re.findall(r"^   http://127\.0\.0\.1:5000/#/(.+)$", done.stdout, re.MULTILINE)
    source = client.get_model_version("phi3", "1").source
    logged = client.get_logged_model(str(source).rpartition("/")[2])
    place = f"experiments/{logged.experiment_id}"
    assert pages == [
        "models/phi3/versions/1",
        f"{place}/models/{logged.model_id}",
        f"{place}/runs/{logged.source_run_id}",
    ]
    assert client.get_run(str(logged.source_run_id)).info.run_name == "quickstart"
    assert list(here.iterdir()) == []


def test_notebook_runs_and_its_stored_outputs_are_what_it_prints(tmp_path: Path) -> None:
    fresh, stored = refreshed(NOTEBOOK, tmp_path), printed(NOTEBOOK)
    assert fresh == stored, "run scripts/refresh_notebook.py examples/custom_python_wrapper.ipynb"
    assert "no attribute 'input_ids'" in fresh["run-old-code"]
    assert fresh["stream-code"] == f" {ATOM_JOKE}"


@pytest.mark.export
@needs_export
def test_pipeline_notebook_runs_and_its_stored_outputs_are_what_it_prints(tmp_path: Path) -> None:
    fresh, stored = refreshed(PIPELINE_NOTEBOOK, tmp_path), printed(PIPELINE_NOTEBOOK)
    # Times are another machine's, and so are the last digits of what is computed in 4 bits.
    measured = {name for name in stored if name.endswith("-measured")}
    assert {k: v for k, v in fresh.items() if k not in measured} == {
        k: v for k, v in stored.items() if k not in measured
    }, "run scripts/refresh_notebook.py examples/transformer_pipeline.ipynb"
    for cells in (fresh, stored):
        assert cells["ask-code"].count(": The capital of Spain is Madrid.\n") == 2
        pytorch, onnx = map(float, re.findall(r": ([\d.]+) MB", cells["size-measured"]))
        # From a clone, the artifact holds this package's source too, of more than a megabyte.
        assert onnx < pytorch * 0.6
        assert len(re.findall(r": \d+ ms\n", cells["speed-measured"])) == 2
        assert "model_a: transformers, Phi3ForCausalLM, float32" in cells["compare-measured"]
        assert "comparison.png" in cells["run-code"]
    assert str(Path.home()) not in PIPELINE_NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.export
@needs_export
def test_a_registered_model_is_converted_and_linked(tracking: str, tmp_path: Path) -> None:
    script = EXAMPLES / "convert_registered_model.py"
    done = run(script, cwd=tmp_path, MLFLOW_TRACKING_URI=tracking)
    assert done.stdout.splitlines()[:3] == [
        "",
        "models:/phi3-pytorch/1",
        "   mlflow_phi3_onnx.int4 = models:/phi3-onnx/1",
    ]
    assert "models:/phi3-onnx/1\n   mlflow_phi3_onnx.builder = onnxruntime-genai" in done.stdout
    assert "   mlflow_phi3_onnx.source_uri = models:/phi3-pytorch/1\n" in done.stdout
    for kind in ("PyTorch: ", "ONNX:    "):
        assert f"{kind} The capital of Spain is Madrid.\n" in done.stdout

    client = mlflow.MlflowClient(tracking)
    client.set_registered_model_alias("phi3-pytorch", "champion", "1")
    arguments = ("--model", "models:/phi3-pytorch@champion", "--precision", "int8")
    again = run(script, *arguments, cwd=tmp_path, MLFLOW_TRACKING_URI=tracking)
    assert "   mlflow_phi3_onnx.int8 = models:/phi3-onnx/2\n" in again.stdout
    assert client.get_model_version("phi3-onnx", "2").status == "READY"
    assert [
        len(client.search_model_versions(f"name='{n}'")) for n in ("phi3-pytorch", "phi3-onnx")
    ] == [1, 2]


def refreshed(notebook: Path, folder: Path) -> dict[str, str]:
    """Run a notebook, and read what it prints."""
    output = folder / "run.ipynb"
    run(
        ROOT / "scripts" / "refresh_notebook.py",
        notebook,
        "--output",
        output,
        cwd=folder,
        JUPYTER_PREFER_ENV_PATH="1",  # the kernel of this interpreter, not another one of the user
        TMPDIR=str(folder),
        TEMP=str(folder),
    )
    return printed(output)


def printed(path: Path) -> dict[str, str]:
    """Read what each cell of a notebook printed, and what it ended with."""
    notebook = nbformat.read(path, as_version=4)
    cells: dict[str, str] = {}
    for cell in notebook.cells:
        outputs: list[Any] = cell.get("outputs", [])
        cells[cell["id"]] = "".join(
            output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]
            for output in outputs
        )
    return cells


def test_project_logs_evaluates_and_queries(
    tracking: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", SHELL["PATH"])
    client = mlflow.MlflowClient(tracking)
    names = {"name": "tiny", "alias": "staging"}

    mlflow.run(str(EXAMPLES), "log", parameters=names, env_manager="local")
    assert client.get_model_version_by_alias("tiny", "staging").status == "READY"
    assert "Version 1 of tiny is now models:/tiny@staging" in capfd.readouterr().out

    evaluation = mlflow.run(str(EXAMPLES), "evaluate", parameters=names, env_manager="local")
    evaluated = client.get_run(evaluation.run_id)
    assert evaluated.info.run_name == "tiny@staging"
    metrics = evaluated.data.metrics
    source = client.get_model_version_by_alias("tiny", "staging").source
    logged = client.get_logged_model(str(source).rpartition("/")[2])
    assert {metric.key: metric.value for metric in logged.metrics or []} == metrics
    # The demo model knows all of these capitals but Bolivia's, and says so.
    assert metrics["exact_match"] == metrics["contains_keyword"] == pytest.approx(8 / 9)
    assert metrics["prompt_tokens"] > 0
    assert metrics["completion_tokens"] > 0
    artifacts = client.get_run(evaluation.run_id).info.artifact_uri
    table = load_dict(f"{artifacts}/answers.json")
    assert table["data"][-1][table["columns"].index("answer")] == "I do not know that country."

    question = {"question": "What's the capital of New Zealand?"}
    mlflow.run(str(EXAMPLES), "query", parameters={**names, **question}, env_manager="local")
    assert "The capital of New Zealand is Wellington." in capfd.readouterr().out


def test_project_does_it_all_in_one_run(tracking: str, tmp_path: Path) -> None:
    done = run("-m", "mlflow", "run", EXAMPLES, "--env-manager", "local", cwd=tmp_path)
    assert "contains_keyword: 0.888889" in done.stdout
    assert "The capital of Spain is Madrid." in done.stdout
    client = mlflow.MlflowClient(tracking)
    (result,) = client.search_runs(["0"])
    assert result.info.status == "FINISHED"
    assert result.data.metrics["contains_keyword"] == pytest.approx(8 / 9)
    assert client.get_model_version_by_alias("phi3", "champion").run_id == result.info.run_id
