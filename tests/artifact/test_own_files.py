"""What a folder holds that is not a file of its own: pipes, and links that lead out of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, save_model
from mlflow_phi3_onnx.artifact.safetensors import read_header
from mlflow_phi3_onnx.flavor.inspect import inspect_model
from mlflow_phi3_onnx.sources.convert.checkpoint import read_checkpoint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.timeout(120)
def test_a_pipe_among_a_model_s_files_is_not_waited_for(demo: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(demo, tmp_path / "model"))
    for name in ("README.md", "LICENSE", "notes.txt"):
        os.mkfifo(source / name)
    save_model(source, tmp_path / "saved")
    assert not {"README.md", "LICENSE", "notes.txt"} & {
        file.name for file in (tmp_path / "saved" / "model").iterdir()
    }
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InvalidModelError, match="is not a safetensors file"):
        read_header(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InvalidModelError, match=r"^model\.safetensors of the checkpoint is no file"
    ):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a path may be any bytes")
def test_a_folder_whose_path_is_not_utf_8_is_refused_in_words(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / os.fsdecode(b"model\xff")
    shutil.copytree(demo, source)
    for loop in ("auto", "slots", "genai"):
        with pytest.raises(
            InvalidModelError, match="path of the model folder is not text in UTF-8"
        ):
            GenAIModel(source, model_config={"loop": loop})
    with pytest.raises(InvalidModelError, match="is not text in UTF-8"):
        save_model(source, tmp_path / "saved")
    monkeypatch.chdir(source)
    with pytest.raises(InvalidModelError, match="is not text in UTF-8"):
        GenAIModel(".")


def test_a_link_that_leads_out_of_a_model_is_not_followed(demo: Path, tmp_path: Path) -> None:
    """Those of the hub's cache are taken, and those within the folder."""
    (tmp_path / "blobs").mkdir()
    source = Path(shutil.copytree(demo, tmp_path / "snapshots" / "abc"))
    for file in sorted(source.iterdir()):
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(Path("..", "..", "blobs", file.name))
    (source / "round").symlink_to("round")
    GenAIModel(source).close()
    (source / "model.onnx.data").unlink()
    outside = (tmp_path / "blobs" / "model.onnx.data").rename(tmp_path / "data")
    (source / "model.onnx.data").symlink_to(outside)
    says = (
        r"^model\.onnx\.data is a symbolic link that leads out of the model: copy the file itself"
    )
    doors: tuple[Any, ...] = (
        GenAIModel,
        lambda path: save_model(path, tmp_path / "saved"),
        inspect_model,
    )
    for door in doors:
        with pytest.raises(InvalidModelError, match=says):
            door(str(source))


def test_a_card_above_a_model_that_leads_out_is_not_published(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "all" / "cpu")
    (tmp_path / "secret").write_text("TOPSECRET")
    (tmp_path / "all" / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModelError, match=r"^README\.md is a symbolic link that leads out"):
        save_model(tmp_path / "all", tmp_path / "saved", subfolder="cpu")
    (tmp_path / "all" / "README.md").unlink()
    (tmp_path / "all" / "README.md").symlink_to("round")
    (tmp_path / "all" / "round").symlink_to("README.md")
    save_model(tmp_path / "all", tmp_path / "saved", subfolder="cpu")
