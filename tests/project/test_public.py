"""The package's face: its names, what importing it does, and which room may import which."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

import mlflow_phi3_onnx
from mlflow_phi3_onnx import errors  # pyright: ignore[reportUnusedImport] - ties

PACKAGE = Path(mlflow_phi3_onnx.__file__).parent

# The rooms, floor by floor: a room imports from the floors below it, and never from one beside it.
LAYERS = (
    ("errors", "_version"),
    ("core", "demo", "mlflow_compat"),
    ("runtime", "grammar"),
    ("artifact", "prompt", "openai"),
    ("engine", "sources"),
    ("model",),
    ("flavor", "tracing"),
    ("evaluation", "server", "deployments"),
    ("cli",),
)
NEVER = (
    ("openai", "runtime"),
    ("openai", "mlflow_compat"),
    ("engine", "openai"),
    ("model", "mlflow_compat"),
    ("model", "sources"),
)


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


def module_name(path: Path) -> str:
    return ".".join(("mlflow_phi3_onnx", *path.relative_to(PACKAGE).with_suffix("").parts))


def test_all_is_exactly_what_is_public() -> None:
    names = mlflow_phi3_onnx.__all__
    assert dir(mlflow_phi3_onnx) == sorted([*names, "errors"])
    assert len(names) == len(set(names))
    private = {"_PyFuncWrapper", "_load_pyfunc", "__version__"}
    assert {name for name in names if name.startswith("_")} == private
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = mlflow_phi3_onnx.no_such_name  # type: ignore[attr-defined] - that is the point


def test_each_public_name_is_what_type_checkers_take_it_for() -> None:
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mlflow_phi")
        for alias in node.names
    }
    assert set(told) == set(mlflow_phi3_onnx.__all__)
    for name, module in told.items():
        assert getattr(mlflow_phi3_onnx, name) is getattr(importlib.import_module(module), name)


def test_each_room_imports_only_the_floors_below_it() -> None:
    floor = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    for room, path in modules():
        used = {
            name.split(".")[1] for name in imports(path) if name.startswith("mlflow_phi3_onnx.")
        } - {room}
        wrong = {u for u in used if floor[u] >= floor[room] or (room, u) in NEVER}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    files = {module_name(path): path for _, path in modules()}
    names = {name.removesuffix(".__init__"): name for name in files}
    below = {
        name: [names[used] for used in imports(path) if names.get(used, name) != name]
        for name, path in files.items()
        if not name.endswith(".__init__")
    }
    # Sorted topologically: what is left over stands in a circle.
    left = set(below)
    while free := {name for name in left if not left.intersection(below[name])}:
        left -= free
    assert not left


def test_only_runtime_names_onnxruntime_genai() -> None:
    for room, path in modules():
        text = path.read_text(encoding="utf-8")
        native = room == "runtime"
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


def test_importing_the_package_loads_no_library_and_turns_telemetry_off() -> None:
    code = (
        "import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None); import mlflow_phi3_onnx;"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1';"
        "assert not {'mlflow', 'numpy', 'pandas'} & set(sys.modules);"
        "mlflow_phi3_onnx.load_model;"
        "heavy = {'onnxruntime_genai', 'onnxruntime', 'torch', 'transformers'};"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rooms_below_mlflow_s_do_not_load_it() -> None:
    pure = (
        *("errors", "core", "demo", "runtime", "grammar", "artifact", "prompt", "openai"),
        *("engine", "model"),
    )
    names = [
        module_name(path) for room, path in modules() if room in pure and path.name != "__init__.py"
    ]
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
loaded = {"mlflow", "pandas", "onnxruntime", "onnxruntime_genai"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code, *names], check=True)


def test_the_errors_are_mlflow_s_at_each_door_that_uses_mlflow() -> None:
    below = {module_name(path): imports(path) for _, path in modules()}
    doors = set(below) - {name for names in below.values() for name in names}
    # The command's main module imports the module of the command that is asked for.
    doors -= {"mlflow_phi3_onnx.cli.main", "mlflow_phi3_onnx.cli.__main__"}

    def reached(name: str) -> set[str]:
        seen, left = set[str](), {name}
        while left:
            seen |= left
            left = {n for one in left for n in below.get(one, ())} - seen
        return seen

    using = {door for door in doors if "mlflow.exceptions" in reached(door)}
    assert len(using) > 5
    for door in using:
        assert "mlflow_phi3_onnx.mlflow_compat" in reached(door), door


def test_an_error_has_the_status_that_mlflow_gives_its_code() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)("A message.")
        status, code = error.status, error.mlflow_code
        assert isinstance(error, MlflowException)
        assert error.get_http_status_code() == status
        assert json.loads(error.serialize_as_json())["error_code"] == code


def test_a_loaded_model_writes_nothing_to_the_home_folder(tmp_path: Path) -> None:
    code = (
        "import mlflow_phi3_onnx as m; model = m.GenAIModel(m.demo_model_path());"
        "model.generate('The capital of Spain is', max_tokens=3)"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
