"""The command line: what it makes, and how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import FLAVOR_NAME
from mlflow_phi3_onnx.cli.main import COMMANDS, main

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ROOT = Path(mlflow_phi3_onnx.__file__).parents[1]

Captured = pytest.CaptureFixture[str]


def test_export_saves_a_model(demo: Path, tmp_path: Path, capsys: Captured) -> None:
    parent = tmp_path / "models"
    (parent / "cpu").mkdir(parents=True)
    for file in demo.iterdir():
        (parent / "cpu" / file.name).hardlink_to(file)
    target = tmp_path / "saved"
    arguments = ["--output", str(target), "--subfolder", "cpu", "--task", "text-generation"]
    assert main(["export", str(parent), *arguments]) == 0
    assert capsys.readouterr().out == f"Saved to {target}.\n"
    flavor = Model.load(str(target)).flavors[FLAVOR_NAME]
    assert flavor["task"] == "text-generation"
    assert flavor["source"] == {"kind": "folder", "subfolder": "cpu"}


@pytest.mark.usefixtures("tracking")
def test_export_registers_a_model(demo: Path, capsys: Captured) -> None:
    assert main(["export", str(demo), "--register", "team.phi3"]) == 0
    assert capsys.readouterr().out == "Registered as models:/team.phi3/1.\n"
    assert main(["export", "models:/team.phi3/1", "--register", "copy"]) == 0
    version: ModelVersion = mlflow.MlflowClient().get_model_version("copy", "1")
    assert version.tags["mlflow_phi3_onnx.source_uri"] == "models:/team.phi3/1"


BAD = {
    "nothing there": (
        ["nowhere"],
        "error: model: there is nothing at the path 'nowhere'. It must be",
    ),
    "no task": (["{demo}", "--task", "chat"], "task must be one of llm/v1/chat"),
    "ready": (["{demo}", "--precision", "int8"], "is in ONNX form already"),
    "options": (["{demo}", "--block-size", "100"], "block_size must be one of 16"),
    "algorithm": (["{demo}", "--algorithm", "k_quants"], "; got 'k_quants'. Did you mean k_quant?"),
    "precision": (["{demo}", "--precision", "int5"], "fp32 on cpu; got 'int5'.\n"),
    "a misspelt task": (["{demo}", "--task", "lm/v1/chat"], "Did you mean llm/v1/chat?"),
    "provider": (["{demo}", "--execution-provider", "tpu"], "execution_provider must be one of"),
    "revision": (["{demo}", "--revision", "main"], "revision is for repositories on the hub"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_an_error_is_one_line_and_status_1(
    demo: Path, tmp_path: Path, capsys: Captured, arguments: list[str], says: str
) -> None:
    given = [argument.format(demo=demo) for argument in arguments]
    assert main(["export", *given, "--output", str(tmp_path / "saved")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("mlflow-phi3-onnx: error: ")
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "saved").exists()


@pytest.mark.usefixtures("tracking")
def test_an_error_of_mlflow_s_is_told_too(demo: Path, capsys: Captured) -> None:
    assert main(["export", str(demo), "--register", " "]) == 1
    assert "mlflow-phi3-onnx: error: " in capsys.readouterr().err


@pytest.mark.parametrize("target", [[], ["--output", "a", "--register", "b"]])
def test_there_is_one_target(demo: Path, target: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(demo), *target])
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_a_process_tells_its_error_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_phi3_onnx.cli", "export", "nowhere", "--output", "saved"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mlflow-phi3-onnx: error: model: there is nothing at the")
    assert "Traceback" not in done.stderr


def test_the_version_and_the_help_are_told_without_loading_mlflow(capsys: Captured) -> None:
    code = (
        "import sys; from mlflow_phi3_onnx.cli.main import COMMANDS, main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlflow', 'pandas', 'numpy', 'onnxruntime', 'onnxruntime_genai'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for argument in ("--version", "--help"):
        command = [sys.executable, "-c", code, argument]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert out.startswith(("mlflow-phi3-onnx ", "usage: mlflow-phi3-onnx "))
        assert out.endswith("\n[]\n")
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert {"SOURCE", "[MODEL]", "[--no-browser]"} & set(capsys.readouterr().out.split())


def test_the_command_is_installed_with_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'mlflow-phi3-onnx = "mlflow_phi3_onnx.cli.main:main"' in project
