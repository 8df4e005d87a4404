"""The documentation's Python and commands run, from the top of a page to its bottom."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.models import MODELS, can_build, checkpoint_folder
from tests.support.pages import ROOT, at_a_terminal, blocks, without_registry
from tests.support.spark import MARKS as NEEDS_SPARK

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its Python as one program, then the deployment's commands as a user types them."""
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks("python")), encoding="utf-8")
    (commands,) = [body for body in blocks("bash") if "deployments create" in body]
    environment = {
        **at_a_terminal(),
        "MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR": str(tmp_path / "deployments"),
    }
    shown = ""
    for command in ([sys.executable, str(program)], ["bash", "-e", "-c", commands]):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    assert "capitals" in shown
    assert "Madrid" in served(environment, tmp_path)


def served(environment: dict[str, str], folder: Path) -> str:
    """Run the README's server on a port that is free, and its question."""
    serve, ask = (body for body in blocks("bash") if "-onnx serve" in body or "/v1/" in body)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    log = folder / "serve.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*serve.split(), "--port", str(port)], env=environment, cwd=folder, stderr=file
        )
    try:
        while "Serving" not in log.read_text() and server.poll() is None:
            time.sleep(0.1)
        command = ["bash", "-e", "-c", ask.replace(":8000", f":{port}")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        server.terminate()
        server.wait()


def run_page(name: str, folder: Path, *changes: tuple[str, str]) -> str:
    """Run the Python of a page as one program, with changes, and return what it prints."""
    program = folder / "page.py"
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    text = "\n".join(blocks("python", page))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    program.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        env=without_registry(),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    assert run_page("guide.md", tmp_path).strip() == "The capital of Spain is Madrid."


def test_the_page_on_comparing_runs(tmp_path: Path) -> None:
    assert re.search(r"identical answers +100\.0%", run_page("comparison.md", tmp_path))


def test_the_commands_of_the_page_on_load_tests_run(tmp_path: Path) -> None:
    commands = "".join(blocks("bash", (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")))
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        env=at_a_terminal(),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Logged as run ") == 2
    assert "of model / compare" in done.stdout


def test_the_page_on_evaluation_runs(tmp_path: Path) -> None:
    assert "The capital of Italy is Rome." in run_page("evaluation.md", tmp_path)


def test_the_page_on_serving_runs(tmp_path: Path) -> None:
    assert run_page("serving.md", tmp_path).strip() == "Madrid."


def test_the_page_on_traces_runs(tmp_path: Path) -> None:
    shown = run_page("tracing.md", tmp_path).splitlines()
    spans = ["chat", "template and tokenization", "queue", "prefill", "decode"]
    assert sorted(shown[:5]) == sorted(f"{name} OK" for name in spans)
    assert shown[5:] == ["The capital of Spain is Madrid."]


@pytest.mark.parametrize("page", [pytest.param("spark.md", marks=NEEDS_SPARK)])
def test_the_page_on_spark_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    run_page(page, tmp_path)


def test_the_page_on_clouds_runs(tmp_path: Path) -> None:
    run_page("clouds.md", tmp_path)


@pytest.mark.export
@pytest.mark.timeout(900)  # a model is converted
@pytest.mark.skipif(not can_build(), reason="converting a model needs the export extra")
def test_the_page_on_precisions_runs(tmp_path: Path) -> None:
    place = str(checkpoint_folder(MODELS["tiny-fp32"].checkpoint))
    shown = run_page(
        "quantization.md", tmp_path, ('"path/to/checkpoint",', f'{place!r}, ["int8"],')
    )
    assert shown.splitlines()[-1] == "['int8-b128-default', 'fp32']"
