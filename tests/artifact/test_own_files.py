"""What a folder holds that is not a file of its own: pipes, and links that lead out of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, save_model
from mlflow_phi3_onnx.artifact.safetensors import read_header
from mlflow_phi3_onnx.flavor.inspect import inspect_model
from mlflow_phi3_onnx.prompt.template.files import read_templates
from mlflow_phi3_onnx.sources.convert.checkpoint import read_checkpoint
from tests.support.edits import edit_json

if TYPE_CHECKING:
    from collections.abc import Callable


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


def named(folder: Path, name: str, *, key: str = "filename") -> None:
    edit_json(
        folder / "genai_config.json", lambda config: config["model"]["decoder"].update({key: name})
    )


def hidden(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / ".m.onnx")
    named(folder, ".m.onnx")


def in_a_hidden_folder(folder: Path) -> None:
    (folder / ".h").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(folder / ".h" / name)
    named(folder, ".h/model.onnx")


def in_a_linked_folder(folder: Path) -> None:
    in_a_hidden_folder(folder)
    (folder / ".h").rename(folder / "real")
    (folder / "sub").symlink_to("real")
    named(folder, "sub/model.onnx")


def hidden_and_elsewhere(folder: Path) -> None:
    hidden(folder)
    (folder / ".m.onnx").rename(folder.parent / "m.onnx")
    (folder / ".m.onnx").symlink_to("../m.onnx")


def hidden_weights(folder: Path) -> None:
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes().replace(b"model.onnx.data", b".odel.onnx.data"))
    (folder / "model.onnx.data").rename(folder / ".odel.onnx.data")


def hidden_settings(folder: Path) -> None:
    (folder.parent / "c.json").write_text("{}")
    (folder / ".h").mkdir()
    (folder / ".h" / "c.json").symlink_to("../../c.json")
    edit_json(
        folder / "genai_config.json",
        lambda config: config["model"].update(
            vision={"config_filename": ".h/c.json", "filename": "model.onnx"}
        ),
    )


def hidden_variant(folder: Path) -> None:
    shutil.copytree(folder, folder / ".cpu")
    package(folder, ".cpu")


def linked_variant(folder: Path) -> None:
    shutil.copytree(folder, folder / "real")
    (folder / "cpu").symlink_to("real")
    package(folder, "cpu")


def package(folder: Path, variant: str) -> None:
    (folder / "genai_config.json").unlink()
    component = {"variants": {variant: {"ep": "cpu"}}}
    manifest = {"schema_version": 1, "components": {"decoder": component}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (hidden, r"^\.m\.onnx is hidden"),
        (in_a_hidden_folder, r"^\.h/model\.onnx is hidden"),
        (in_a_linked_folder, r"^sub/model\.onnx is in a folder that is a symbolic link"),
        (hidden_and_elsewhere, r"^\.m\.onnx is hidden"),
        (hidden_weights, r"^\.odel\.onnx\.data is hidden"),
        (hidden_settings, r"^\.h/c\.json is hidden"),
        (hidden_variant, r"^\.cpu/genai_config\.json is hidden"),
        (linked_variant, r"^cpu/genai_config\.json is in a folder that is a symbolic link"),
    ],
)
def test_what_would_not_be_saved_is_not_read(
    demo: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    change(folder)
    doors: tuple[Any, ...] = (inspect_model,)
    if (folder / "genai_config.json").is_file():
        doors += (GenAIModel, lambda path: save_model(path, tmp_path / "saved"))
    for door in doors:
        with pytest.raises(InvalidModelError, match=says):
            door(str(folder))


def test_a_hidden_template_is_not_read(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / ".tool_use.jinja").write_text("{% x")
    assert list(read_templates(folder)) == ["default"]


def test_a_file_whose_name_cannot_be_saved_is_told_before(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    try:
        Path(folder, os.fsdecode(b"r\xff.txt")).touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    for door in (inspect_model, lambda path: save_model(path, tmp_path / "saved")):
        with pytest.raises(
            InvalidModelError, match=r"cannot be saved .*'r\\udcff\.txt' is no plain"
        ):
            door(str(folder))
