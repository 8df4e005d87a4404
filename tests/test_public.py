"""The package's face: its names, what importing it does, and which room may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import mlflow_phi3_onnx

PACKAGE = Path(mlflow_phi3_onnx.__file__).parent

# What each room may import of the package, besides errors and itself.
ROOMS = {
    "_version": set[str](),
    "artifact": {"mlflow_compat", "runtime"},
    "cli": {"_version", "flavor", "model", "openai"},
    "comparison": set[str](),
    "core": set[str](),
    "demo": set[str](),
    "deployments": set[str](),
    "engine": {"core", "prompt", "runtime"},
    "errors": set[str](),
    "evaluation": {"artifact", "core", "flavor", "model", "openai", "sources"},
    "flavor": {
        "_version",
        "artifact",
        "mlflow_compat",
        "model",
        "openai",
        "prompt",
        "runtime",
        "sources",
    },
    "generation": set[str](),
    "grammar": {"core", "openai"},
    "mlflow_compat": set[str](),
    "model": {"artifact", "core", "engine", "openai", "prompt", "runtime"},
    "openai": {"core", "grammar"},
    "prompt": {"core", "grammar"},
    "runtime": set[str](),
    "sources": {"_version", "artifact", "mlflow_compat", "runtime"},
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules() -> list[tuple[str, Path]]:
    found = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]
    return [(p.relative_to(PACKAGE).parts[0].removesuffix(".py"), p) for p in found]


def test_all_is_exactly_what_is_public() -> None:
    private = {"_PyFuncWrapper", "_load_pyfunc"}
    rooms = {room for room, _ in modules()}
    public = {
        name
        for name in vars(mlflow_phi3_onnx)
        if name not in rooms and (not name.startswith("_") or name in private | {"__version__"})
    }
    assert set(mlflow_phi3_onnx.__all__) == public
    assert len(mlflow_phi3_onnx.__all__) == len(set(mlflow_phi3_onnx.__all__))


def test_each_room_imports_only_the_rooms_below_it() -> None:
    for room, path in modules():
        used = {
            name.split(".")[1] for name in imports(path) if name.startswith("mlflow_phi3_onnx.")
        }
        allowed = ROOMS[room] | {"errors", room}
        assert used <= allowed, f"{path.relative_to(PACKAGE)} imports {used - allowed}"


def test_only_runtime_names_onnxruntime_genai() -> None:
    for room, path in modules():
        text = path.read_text(encoding="utf-8")
        native = room in ("runtime", "slot_runtime")
        assert native or 'import_module("onnxruntime' not in text
        assert not any(name.startswith("onnxruntime") for name in imports(path))


def test_only_mlflow_compat_imports_private_names_of_mlflow() -> None:
    for room, path in modules():
        private = {
            name
            for name in imports(path)
            if name.startswith("mlflow.") and any(p.startswith("_") for p in name.split("."))
        }
        assert room == "mlflow_compat" or not private, f"{path.name} imports {private}"


def test_importing_the_package_loads_no_runtime_and_turns_telemetry_off() -> None:
    code = (
        "import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None); import mlflow_phi3_onnx;"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1';"
        "assert not {'onnxruntime_genai', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loaded_model_writes_nothing_to_the_home_folder(tmp_path: Path) -> None:
    code = (
        "import mlflow_phi3_onnx as m; model = m.GenAIModel(m.demo_model_path());"
        "model.generate('The capital of Spain is', max_tokens=3)"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
