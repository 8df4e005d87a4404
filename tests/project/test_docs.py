"""The documentation runs, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

from mlflow_phi3_onnx.openai.parameters import PARAMETERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
COMPARISON = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return [body for kind, body in BLOCK.findall(page) if kind == language]


def test_the_parameter_tables_are_those_of_the_code() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "parameter_tables.py"))["document"]()
    written = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert written == made, "run python scripts/parameter_tables.py"


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its Python as one program, then the deployment's commands as a user types them."""
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks("python")), encoding="utf-8")
    (commands,) = [body for body in blocks("bash") if "deployments create" in body]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MLFLOW_REGISTRY_URI"},
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


def test_the_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    program = tmp_path / "guide.py"
    program.write_text("\n".join(blocks("python", GUIDE)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "The capital of Spain is Madrid."


def test_the_page_on_comparing_runs(tmp_path: Path) -> None:
    program = tmp_path / "comparison.py"
    program.write_text("\n".join(blocks("python", COMPARISON)), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_REGISTRY_URI"}
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"identical answers +100\.0%", done.stdout)


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


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
