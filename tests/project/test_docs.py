"""The documentation runs, and its tables are those of the code."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mlflow_phi3_onnx
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from tests.support.spark import MARKS as NEEDS_SPARK

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# The pages whose Python is run: from top to bottom, as a program and as the cells of a notebook.
PROGRAMS = (
    *("README.md", "docs/guide.md", "docs/comparison.md", "docs/evaluation.md"),
    "docs/serving.md",
    "docs/tracing.md",
)
IN_A_NOTEBOOK = re.compile(r"^( *).+  # in a notebook: (.+)$", re.MULTILINE)

GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return [body for kind, body in BLOCK.findall(page) if kind == language]


@pytest.mark.parametrize(
    ("page", "script"),
    [("parameters.md", "parameter_tables.py"), ("api.md", "api_reference.py")],
)
def test_generated_pages_are_those_of_the_code(page: str, script: str) -> None:
    made = runpy.run_path(str(ROOT / "scripts" / script))["document"]()
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == made, f"run python scripts/{script}"


def test_the_api_reference_has_every_public_name() -> None:
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    methods = [name for name in dir(mlflow_phi3_onnx.GenAIModel) if not name.startswith("_")]
    names = [name for name in mlflow_phi3_onnx.__all__ if not re.match("_[^_]", name)]
    names += [f"GenAIModel.{name}" for name in methods]
    assert [name for name in names if f"`{name}`" not in written] == []


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its Python as one program, then the deployment's commands as a user types them."""
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks("python")), encoding="utf-8")
    (commands,) = [body for body in blocks("bash") if "deployments create" in body]
    environment = {
        **without_registry(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
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


def without_registry() -> dict[str, str]:
    """Return this process's environment, without the registry that MLflow sets in it."""
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_REGISTRY_URI"}


def run_page(name: str, folder: Path) -> str:
    """Run the Python of a page as one program, and return what it prints."""
    program = folder / "page.py"
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    program.write_text("\n".join(blocks("python", page)), encoding="utf-8")
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
    environment = {
        **without_registry(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
    }
    commands = "".join(blocks("bash", (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")))
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        env=environment,
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [*PROGRAMS, "docs/clouds.md", pytest.param("docs/spark.md", marks=NEEDS_SPARK)],
)
def test_a_page_runs_in_a_notebook_too(page: str, tmp_path: Path) -> None:
    """A cell for each block. An event loop is running there, in which ``asyncio.run`` fails."""
    new: Any = nbformat.v4
    cells = [
        new.new_code_cell(IN_A_NOTEBOOK.sub(r"\1\2", block))
        for block in blocks("python", (ROOT / page).read_text(encoding="utf-8"))
    ]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "page.ipynb")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "refresh_notebook.py"), "page.ipynb"],
        # The kernel of this interpreter, not another one of the user.
        env={
            **without_registry(),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [pytest.param("spark.md", marks=NEEDS_SPARK)])
def test_the_page_on_spark_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    run_page(page, tmp_path)


def test_the_page_on_clouds_runs(tmp_path: Path) -> None:
    run_page("clouds.md", tmp_path)


def test_no_other_page_has_python_that_is_not_run() -> None:
    run = {page for page in PAGES if blocks("python", page.read_text(encoding="utf-8"))}
    # The last one in tests/server/test_gateway.py.
    elsewhere = ("docs/clouds.md", "docs/spark.md", "docs/gateway.md")
    assert run == {ROOT / page for page in (*PROGRAMS, *elsewhere)}


def test_the_guide_has_every_parameter() -> None:
    honoured = {
        name
        for table in PARAMETERS.values()
        for name, row in table.items()
        if row.status == "honoured"
    }
    assert {
        name for name in honoured if f"`{name}" not in GUIDE and f"{name}=" not in GUIDE
    } == set()


def test_the_gpu_recipe_brings_what_the_package_needs() -> None:
    """All but the CPU build, in the versions of pyproject.toml, or with MLflow."""
    (recipe, *_) = blocks("bash", (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"))
    given = {one.name: one for one in map(Requirement, re.findall('"([^"]+)"', recipe))}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (section,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    needed = {one.name: one for one in map(Requirement, re.findall('"([^"]+)"', section))}
    newest = re.search('"onnxruntime-genai(>=[^;"]+); python_version >=', section)
    assert newest
    assert given["onnxruntime-genai-cuda"].specifier == SpecifierSet(newest[1])
    del needed["onnxruntime-genai"]
    assert {name: given[name].specifier for name in needed.keys() & given.keys()} == {
        name: needed[name].specifier for name in needed.keys() & given.keys()
    }
    assert needed.keys() - given.keys() <= brought_by("mlflow")


def brought_by(name: str) -> set[str]:
    """Return what an installed distribution requires, and what that requires."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for text in importlib.metadata.requires(waiting.pop()) or ():
            one = Requirement(text)
            wanted = one.marker is None or one.marker.evaluate({"extra": ""})
            if wanted and (found := canonicalize_name(one.name)) not in seen:
                seen.add(found)
                waiting.append(found)
    return seen


def anchors(text: str) -> set[str]:
    """Return what links to a page's headings are called, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    broken: list[str] = []
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if re.match("https?:", target):
                continue
            name, _, anchor = target.partition("#")
            other = (page.parent / name).resolve() if name else page
            if not other.exists() or (
                anchor and anchor not in anchors(other.read_text(encoding="utf-8"))
            ):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_page_can_be_found() -> None:
    """From the index, and each decision from their list."""
    for start in (ROOT / "docs" / "index.md", ROOT / "docs" / "decisions" / "README.md"):
        text = start.read_text(encoding="utf-8")
        linked = {(start.parent / name).resolve() for name in re.findall(r"\]\(([^)#]+)", text)}
        assert {page for page in start.parent.glob("*.md") if page != start} <= linked


def test_a_decision_is_one_screen_that_says_what_and_why() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert len(text.splitlines()) <= 40, page.name
        assert all(f"**{part}.**" in text for part in ("Decision", "Why", "What follows"))
