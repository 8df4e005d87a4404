"""Where a model can be saved to, and what is said of everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlflow_phi3_onnx import GenAIError, InvalidRequestError, SaveError, save_model

ODD = {
    "None": (None, "got null"),
    "a number": (5, "got 5"),
    "bytes": (b"x", "got bytes"),
    "a list": (["x"], "got a list"),
    "nothing": ("", "got an empty string"),
    "NUL": ("a\0b", "a NUL or a lone surrogate"),
    "a lone surrogate": ("a\ud800", "a NUL or a lone surrogate"),
    "a surrogate for a byte": (Path("a\udcff"), "a NUL or a lone surrogate"),
    "a long name": ("x" * 300, "a name of 300 bytes"),
    "a name that is just too long": ("x" * 256 + "/y", "a name of 256 bytes"),
    "a long name of other letters": ("é" * 128, "a name of 256 bytes"),
}


@pytest.mark.parametrize(("path", "says"), ODD.values(), ids=ODD)
def test_what_is_no_path_is_refused_before_anything_is_read(path: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^path must be a string.*{says}") as caught:
        save_model("there is no such model", path)
    assert caught.value.param == "path"
    caught.value.message.encode()


@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
def test_paths_that_the_system_refuses(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "x", tmp_path / ("x/" * 3000)):
        with pytest.raises(SaveError, match=r"cannot be saved to .*(symbolic links|too long)"):
            save_model("there is no such model", path)
    for path, kind in (("/", "/, is not empty"), (tmp_path / "file", "file, is a file")):
        with pytest.raises(InvalidRequestError, match=f"^The path to save to, {kind}"):
            save_model("there is no such model", path)


@pytest.mark.parametrize("name", ["x" * 245, "é" * 127 + "x"], ids=["long", "as long as may be"])
def test_a_long_name(demo: Path, tmp_path: Path, name: str) -> None:
    save_model(demo, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    (tmp_path / "link").symlink_to("new")
    save_model(demo, os.path.relpath(tmp_path / "link"))
    assert (tmp_path / "new" / "MLmodel").is_file()


def test_a_folder_below_a_file(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GenAIError, match=r"cannot be saved to .*file/x: "):
        save_model(demo, tmp_path / "file" / "x")
