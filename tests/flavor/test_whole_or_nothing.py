"""A model is saved whole or not at all, and nothing is saved that could not be loaded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import InvalidModelError, InvalidRequestError, load_model, save_model
from mlflow_phi3_onnx.errors import SaveError
from tests.support.edits import edit_json

if TYPE_CHECKING:
    from collections.abc import Callable

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo model."""
    return Path(shutil.copytree(demo, tmp_path / "source"))


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda folder: edit_json(folder / "genai_config.json", change)


UNLOADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tokenizer that is a list": (write("tokenizer.json", "[]"), "tokenizer.json must hold"),
    "a tokenizer of no kind": (write("tokenizer.json", "{}"), "tokenizer.json is damaged"),
    "a template that does not end": (write("chat_template.jinja", "{{ x"), "chat template"),
    "a key that onnxruntime-genai does not know": (
        config(lambda c: c["model"].update(x=1)),
        "onnxruntime-genai does not accept: .*x",
    ),
    "a value of a kind that it does not accept": (
        config(lambda c: c["model"]["decoder"].update(hidden_size="x")),
        "onnxruntime-genai does not accept: .*hidden_size",
    ),
}


@pytest.mark.parametrize(("damage", "says"), UNLOADABLE.values(), ids=UNLOADABLE)
def test_what_cannot_be_loaded_is_neither_saved_nor_logged(
    folder: Path, tmp_path: Path, tracking: str, damage: Callable[[Path], Any], says: str
) -> None:
    damage(folder)
    with pytest.raises(InvalidModelError, match=says):
        save_model(folder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    before = len(mlflow.search_logged_models(output_format="list"))
    with pytest.raises(InvalidModelError, match=says):
        mlflow_phi3_onnx.log_model(folder, name="x", registered_model_name="x")
    assert len(mlflow.search_logged_models(output_format="list")) == before
    assert mlflow.MlflowClient(tracking).search_registered_models() == []


def test_how_it_is_verified_is_not_saved(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="verify is for whoever loads") as caught:
        save_model(demo, tmp_path / "saved", model_config={"verify": "off"})
    assert caught.value.param == "verify"
    assert caught.value.message.endswith("Leave it out of model_config, and give it to load_model.")


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("this system does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@root
@pytest.mark.parametrize("name", ["new", "there", "."])
def test_a_full_disk_leaves_what_was_there(demo: Path, disk: Path, name: str) -> None:
    (disk / "there").mkdir()
    if name == ".":
        (disk / "there").rmdir()
    before = sorted(disk.rglob("*"))
    with pytest.raises(SaveError, match=r"saved to .*: No space left on device\.") as caught:
        save_model(demo, disk / name)
    assert str(disk / name) in caught.value.message
    assert sorted(disk.rglob("*")) == before


def test_a_place_that_cannot_be_written_to_is_named(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match=r"saved to .*file/model: (Not a dir|File exists)"):
        save_model(demo, tmp_path / "file" / "model")


@root
def test_an_empty_volume_takes_a_model(demo: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(volume)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("this system does not let us mount a volume")
    try:
        save_model(demo, volume)
        assert [path.name for path in volume.iterdir() if path.name.startswith(".")] == []
        with load_model(volume) as model:
            assert model.name == "phi3"
    finally:
        subprocess.run(["umount", str(volume)], check=True)


def test_an_empty_folder_keeps_its_mode(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir(mode=0o750)
    save_model(demo, tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o750


SAVING = """
import sys
from pathlib import Path
import mlflow_phi3_onnx.flavor.save as saving
import mlflow_phi3_onnx

def wait(*_):
    Path(sys.argv[3]).touch()
    __import__("time").sleep(60)

saving._write_environment = wait
mlflow_phi3_onnx.save_model(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_leaves_no_model(demo: Path, tmp_path: Path) -> None:
    """Killed when all but the last file is written."""
    target, reached = tmp_path / "saved", tmp_path / "reached"
    process = subprocess.Popen([sys.executable, "-c", SAVING, demo, target, reached])
    deadline = time.monotonic() + 120
    while not reached.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    save_model(demo, target)
    with load_model(target) as model:
        assert model.name == "phi3"


def test_the_users_files_are_not_linked_to(demo: Path, tmp_path: Path, tracking: str) -> None:
    """Other programs refuse a file with a second name as an attack."""
    assert tracking
    source = Path(shutil.copytree(demo, tmp_path / "source"))
    seen: list[int] = []
    original = Model.save

    def save(self: Any, path: str) -> None:
        seen.extend(file.stat().st_nlink for file in source.iterdir())
        original(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "save", save)
        mlflow_phi3_onnx.log_model(source, name="x")
    assert {*seen} == {1}


def test_the_folder_that_one_is_in_stays_what_it_was(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(demo, ".")
    assert Path.cwd() == tmp_path
    with load_model(".") as model:
        assert model.name == "phi3"
