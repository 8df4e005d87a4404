"""The environment that is saved with a model: MLflow's arguments, and what it needs by default."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import __version__ as mlflow_version
from packaging.requirements import Requirement

import mlflow_phi3_onnx
from mlflow_phi3_onnx import (
    get_default_conda_env,
    get_default_pip_requirements,
    save_model,
)
from mlflow_phi3_onnx.flavor.requirements import DEPENDENCIES

MLFLOW = f"mlflow=={mlflow_version}"
URL = "https://example.com/phi3"

Installed = Callable[..., None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Makes this process see other installed distributions than there are.

    Everything stays importable through links, but for the metadata of the distributions named.
    """

    def install(*without: str, origin: dict[str, Any] | None = None, **distributions: str) -> None:
        hidden = {"mlflow_phi3_onnx", *without}
        sites = [Path(p) for p in sys.path if any(Path(p).glob("*.dist-info"))]
        shown = tmp_path / "site"
        shown.mkdir()
        for path in (path for site in sites for path in site.iterdir()):
            name = path.name.split("-")[0]
            if path.suffix != ".dist-info" or name not in hidden:
                link = shown / path.name
                if not link.exists():
                    link.symlink_to(path)
        for name, version in distributions.items():
            info = shown / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
            if origin is not None:
                (info / "direct_url.json").write_text(json.dumps(origin))
        others = [p for p in sys.path if Path(p) not in sites]
        monkeypatch.setattr(sys, "path", [*others, str(shown)])

    return install


def requirements(path: Path) -> list[str]:
    return (path / "requirements.txt").read_text().splitlines()


def conda_pip(path: Path) -> list[str]:
    return yaml.safe_load((path / "conda.yaml").read_text())["dependencies"][-1]["pip"]


def names(lines: list[str]) -> set[str]:
    return {Requirement(line).name for line in lines}


def test_the_default_requirements_are_saved_with_mlflow(saved: Path) -> None:
    assert requirements(saved) == [MLFLOW, *get_default_pip_requirements()]


def test_the_conda_environment_has_the_same_requirements(saved: Path) -> None:
    assert conda_pip(saved) == requirements(saved)


def test_the_default_conda_environment_is_the_saved_one(saved: Path) -> None:
    assert yaml.safe_load((saved / "conda.yaml").read_text()) == get_default_conda_env()


def test_default_requirements_are_pinned_to_what_is_installed() -> None:
    for line in get_default_pip_requirements():
        requirement = Requirement(line)
        assert str(requirement.specifier) == f"=={importlib.metadata.version(requirement.name)}"


def test_the_python_version_is_saved(saved: Path) -> None:
    environment = yaml.safe_load((saved / "python_env.yaml").read_text())
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["dependencies"] == ["-r requirements.txt"]


def test_a_uv_project_in_the_working_folder_changes_nothing(
    saved: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1"\n')
    (tmp_path / "uv.lock").write_text("version = 1\n")
    monkeypatch.chdir(tmp_path)
    save_model(demo, tmp_path / "saved")
    assert requirements(tmp_path / "saved") == requirements(saved)


def test_pip_requirements_replace_the_default(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, pip_requirements=["foo", "bar==1.0"])
    assert requirements(tmp_path) == [MLFLOW, "foo", "bar==1.0"]
    assert conda_pip(tmp_path) == [MLFLOW, "foo", "bar==1.0"]


def test_no_pip_requirements_are_just_mlflow(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, pip_requirements=[])
    assert requirements(tmp_path) == [MLFLOW]


def test_an_mlflow_requirement_of_your_own_stays(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, pip_requirements=["foo", "mlflow>=3"])
    assert requirements(tmp_path) == ["foo", "mlflow>=3"]


def test_pip_requirements_may_be_a_file(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("# a comment\nfoo\n")
    save_model(demo, tmp_path / "saved", pip_requirements=str(tmp_path / "needs.txt"))
    assert requirements(tmp_path / "saved") == [MLFLOW, "foo"]


def test_pip_requirements_may_name_files(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("foo\n")
    save_model(demo, tmp_path / "saved", pip_requirements=[f"-r {tmp_path / 'needs.txt'}", "bar"])
    assert requirements(tmp_path / "saved") == [MLFLOW, "foo", "bar"]


def test_constraints_are_saved_beside_the_requirements(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.txt").write_text("foo<2\n")
    lines = [f"-c {tmp_path / 'limits.txt'}", "foo"]
    save_model(demo, tmp_path / "saved", pip_requirements=lines)
    assert requirements(tmp_path / "saved") == [MLFLOW, "foo", "-c constraints.txt"]
    assert (tmp_path / "saved" / "constraints.txt").read_text() == "foo<2"


def test_extra_pip_requirements_are_added_to_the_default(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, extra_pip_requirements=["foo"])
    assert requirements(tmp_path) == [MLFLOW, *get_default_pip_requirements(), "foo"]


def test_extra_pip_requirements_may_be_files(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("foo\n")
    (tmp_path / "limits.txt").write_text("foo<2\n")
    lines = [f"-r {tmp_path / 'needs.txt'}", f"-c {tmp_path / 'limits.txt'}"]
    save_model(demo, tmp_path / "saved", extra_pip_requirements=lines)
    default = get_default_pip_requirements()
    assert requirements(tmp_path / "saved") == [MLFLOW, *default, "foo", "-c constraints.txt"]


CONDA: dict[str, Any] = {
    "name": "phi3",
    "channels": ["conda-forge"],
    "dependencies": ["python=3.11", {"pip": ["foo", "mlflow"]}],
}


def test_a_conda_environment_replaces_the_default(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path, conda_env=CONDA)
    assert yaml.safe_load((tmp_path / "conda.yaml").read_text()) == CONDA
    assert requirements(tmp_path) == ["foo", "mlflow"]


def test_a_conda_environment_may_be_a_file(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(CONDA))
    save_model(demo, tmp_path / "saved", conda_env=str(tmp_path / "env.yaml"))
    assert yaml.safe_load((tmp_path / "saved" / "conda.yaml").read_text()) == CONDA


@pytest.mark.parametrize(
    "arguments",
    [
        {"conda_env": CONDA, "pip_requirements": ["foo"]},
        {"conda_env": CONDA, "extra_pip_requirements": ["foo"]},
        {"pip_requirements": ["foo"], "extra_pip_requirements": ["bar"]},
    ],
    ids=lambda arguments: " and ".join(arguments),
)
def test_two_environments_are_refused(
    demo: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="Only one of"):
        save_model(demo, tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


def test_from_a_package_index_it_is_named_by_its_version(installed: Installed) -> None:
    version = mlflow_phi3_onnx.__version__
    installed(mlflow_phi3_onnx=version)
    assert get_default_pip_requirements()[0] == f"mlflow-phi3-onnx=={version}"


def test_from_a_package_index_its_dependencies_come_with_it(installed: Installed) -> None:
    installed(mlflow_phi3_onnx=mlflow_phi3_onnx.__version__)
    expected = {"mlflow-phi3-onnx", "onnxruntime-genai", "tokenizers"}
    assert names(get_default_pip_requirements()) == expected


def test_from_version_control_it_is_named_by_its_commit(installed: Installed) -> None:
    vcs = {"vcs": "git", "requested_revision": "main", "commit_id": "abc123"}
    installed(mlflow_phi3_onnx="0.1.0", origin={"url": f"{URL}.git", "vcs_info": vcs})
    own = f"mlflow-phi3-onnx @ git+{URL}.git@abc123"
    assert get_default_pip_requirements()[0] == own
    assert Requirement(own).url == f"git+{URL}.git@abc123"


def test_from_a_folder_of_a_repository_the_folder_is_named_too(installed: Installed) -> None:
    vcs = {"vcs": "git", "commit_id": "abc123"}
    origin = {"url": f"{URL}.git", "vcs_info": vcs, "subdirectory": "python"}
    installed(mlflow_phi3_onnx="0.1.0", origin=origin)
    own = f"mlflow-phi3-onnx @ git+{URL}.git@abc123#subdirectory=python"
    assert get_default_pip_requirements()[0] == own


def test_from_an_archive_on_the_web_it_is_named_by_its_address(installed: Installed) -> None:
    origin = {"url": f"{URL}.whl", "archive_info": {}}
    installed(mlflow_phi3_onnx="0.1.0", origin=origin)
    assert get_default_pip_requirements()[0] == f"mlflow-phi3-onnx @ {URL}.whl"


LOCAL: dict[str, dict[str, Any]] = {
    "editable": {"url": "file:///home/me/phi3", "dir_info": {"editable": True}},
    "folder": {"url": "file:///home/me/phi3", "dir_info": {}},
    "local wheel": {"url": "file:///home/me/phi3.whl", "archive_info": {}},
}


@pytest.mark.parametrize("origin", LOCAL.values(), ids=LOCAL)
def test_from_a_local_place_its_source_is_saved_and_its_dependencies_named(
    installed: Installed, demo: Path, tmp_path: Path, origin: dict[str, Any]
) -> None:
    installed(mlflow_phi3_onnx="0.1.0", origin=origin)
    save_model(demo, tmp_path / "saved")
    assert "mlflow-phi3-onnx" not in names(requirements(tmp_path / "saved"))
    assert {"jinja2", "numpy", "onnxruntime-genai"} <= names(requirements(tmp_path / "saved"))
    assert (tmp_path / "saved" / "code" / "mlflow_phi3_onnx" / "__init__.py").is_file()


def test_where_it_is_not_installed_its_source_is_saved(
    installed: Installed, demo: Path, tmp_path: Path
) -> None:
    installed()
    save_model(demo, tmp_path / "saved")
    assert "mlflow-phi3-onnx" not in names(requirements(tmp_path / "saved"))
    assert (tmp_path / "saved" / "code" / "mlflow_phi3_onnx" / "__init__.py").is_file()


def test_from_a_package_index_no_source_is_saved(
    installed: Installed, demo: Path, tmp_path: Path
) -> None:
    installed(mlflow_phi3_onnx="0.1.0")
    save_model(demo, tmp_path / "saved")
    assert not (tmp_path / "saved" / "code").exists()


@pytest.mark.parametrize("build", ["onnxruntime_genai_cuda", "onnxruntime_genai_directml"])
def test_another_build_of_the_runtime_is_named_without_the_one_for_cpus(
    installed: Installed, demo: Path, tmp_path: Path, build: str
) -> None:
    installed("onnxruntime_genai", mlflow_phi3_onnx="0.1.0", **{build: "0.18.0"})
    save_model(demo, tmp_path / "saved")
    lines = requirements(tmp_path / "saved")
    assert f"{build.replace('_', '-')}==0.18.0" in lines
    assert not names(lines) & {"mlflow-phi3-onnx", "onnxruntime-genai"}
    assert (tmp_path / "saved" / "code" / "mlflow_phi3_onnx" / "__init__.py").is_file()


def test_a_machine_without_the_runtime_can_save_a_model(
    installed: Installed, demo: Path, tmp_path: Path
) -> None:
    installed("onnxruntime_genai", mlflow_phi3_onnx="0.1.0")
    save_model(demo, tmp_path / "saved")
    assert "onnxruntime-genai" in names(requirements(tmp_path / "saved"))


PROJECT = Path(mlflow_phi3_onnx.__file__).parents[1] / "pyproject.toml"


def test_bundled_source_brings_the_dependencies_that_the_project_declares() -> None:
    block = PROJECT.read_text(encoding="utf-8").partition("\ndependencies = [\n")[2]
    declared = {
        Requirement(line.strip(' ",')).name
        for line in block.partition("\n]\n")[0].splitlines()
        if not line.strip().startswith("#")
    }
    assert set(DEPENDENCIES) == declared - {"mlflow", "onnxruntime-genai"}
