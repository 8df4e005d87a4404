"""What a folder brings: JSON that could be read in two ways, and names that lead elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.artifact.manifest import check_files, stage
from mlflow_phi3_onnx.artifact.package import read_package
from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME, Reference, SavedModel, read_saved
from mlflow_phi3_onnx.core.bounds import MAX_LISTING_BYTES, MAX_VALUES
from mlflow_phi3_onnx.core.files import (
    inside,
    list_visible,
    read_json_object,
    read_text,
    read_yaml_object,
    show_path,
)
from mlflow_phi3_onnx.sources.convert.checkpoint import read_checkpoint
from mlflow_phi3_onnx.sources.layout import check_subfolder
from mlflow_phi3_onnx.sources.local import MIRROR_VARIABLE, checked_files
from mlflow_phi3_onnx.sources.mlflow_models import assemble_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Expecting value: line 1, column 1\\."),
    "a list": (b"[]", "must hold a JSON object; it holds a list"),
    "null": (b"null", "must hold a JSON object; it holds null"),
    "a key twice": (b'{"a": {"b": 1, "b": 2}}', "has the key 'b' twice"),
    "NaN": (b'{"a": NaN}', "has the number NaN"),
    "Infinity": (b'{"a": -Infinity}', "has the number -Infinity"),
    "more than a float holds": (b'{"a": 1e999}', "has the number 1e999"),
    "more digits than Python reads": (b'{"a": 1' + b"0" * 5000 + b"}", "is not valid JSON"),
    "text behind the end": (b"{}\n{}", "Extra data: line 2, column 1\\."),
    "a comment": (b"{} // x", "Extra data"),
    "a string without end": (
        b'{"a":\n "b}',
        r"is not valid JSON: Unterminated string starting at: line 2, column 2\.",
    ),
    "a control character": (b'{"a": "\n"}', r"Invalid control character at: line 1, column 8\."),
    "an escape": (b'{"a": "\\x"}', r"Invalid \\escape: line 1, column 8\."),
    "not UTF-8": (b'{"a": "\xff"}', "it is not text in UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "it is not text in UTF-8"),
    "half a character": (b'{"a": [{"b": "\\uD83d"}]}', r"a holds a lone surrogate \(U\+D83D\)"),
    "half a character in a key": (b'{"a": {"\\udc00": 1}}', r"a holds a lone surrogate"),
    "half a character in the first key": (b'{"\\udc00": 1}', "The name of a field holds a lone"),
    "deep": (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
    "very deep": (b"[" * 100_000, "nested deeper than 64 levels"),
}


@pytest.mark.parametrize(("content", "says"), JSON.values(), ids=JSON)
def test_json_that_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InvalidModelError, match=f"x.json:? .*{says}") as caught:
        read_json_object(tmp_path / "x.json")
    assert str(tmp_path) not in caught.value.message


def test_json_that_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9", "b": 1e30}\n')
    assert read_json_object(file) == {"a": "é", "b": 1e30}
    file.write_bytes(b'{"a":' * 64 + b"1" + b"}" * 64)
    assert read_json_object(file)
    file.write_bytes(b'{"a": Infinity}')
    assert read_json_object(file, infinite=True) == {"a": float("inf")}


def test_json_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="x is missing"):
        read_json_object(tmp_path / "x", InvalidRequestError)
    with pytest.raises(InvalidModelError, match="cannot be read"):
        read_json_object(tmp_path)
    with (tmp_path / "x").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(InvalidModelError, match="x is larger than 1 MiB"):
        read_json_object(tmp_path / "x")


def test_a_file_may_have_as_many_bytes_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abcde")
    assert read_text(tmp_path / "x", 5) == "abcde"
    with pytest.raises(InvalidModelError, match="x is larger than"):
        read_text(tmp_path / "x", 4)
    (tmp_path / "x").write_bytes(b"{}".ljust(1 << 20))
    assert read_json_object(tmp_path / "x") == {}
    (tmp_path / "x").write_bytes(b"{}".ljust(MAX_LISTING_BYTES))
    assert read_json_object(tmp_path / "x", most=MAX_LISTING_BYTES) == {}


def test_a_document_may_have_as_many_values_and_no_more(tmp_path: Path) -> None:
    listed = b'{"a": [' + b"0," * (MAX_VALUES - 2)
    (tmp_path / "x").write_bytes(listed + b"0]}")
    values = read_json_object(tmp_path / "x", most=MAX_LISTING_BYTES)["a"]
    assert len(values) == MAX_VALUES - 1
    for more in (b"0,0]}", b"[0]]}", b"{}]}"):
        (tmp_path / "x").write_bytes(listed + more)
        with pytest.raises(InvalidModelError, match=r"x .*could have more than 1,048,576 values"):
            read_json_object(tmp_path / "x", most=MAX_LISTING_BYTES)


def test_yaml_is_nested_and_refers_as_much_as_it_may(tmp_path: Path) -> None:
    def read(text: str) -> dict[str, Any]:
        (tmp_path / "MLmodel").write_text(text)
        return read_yaml_object(tmp_path / "MLmodel")

    assert read("{a: " * 64 + "1" + "}" * 64)
    aliases = "a: &x 1\nb: [" + "*x, " * 999
    assert len(read(aliases + "*x]\n")["b"]) == 1000
    for text in ("{a: " * 65 + "1" + "}" * 65, aliases + "*x, *x]\n"):
        with pytest.raises(
            InvalidModelError, match=r"MLmodel .*deeper than 64 levels, or by alias"
        ):
            read(text)


def test_yaml_s_numbers_to_base_60_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "MLmodel"
    long = "1:" * 499 + "10"
    file.write_text(f"a: 1:30\nb: -1:30.5\nc: 90\nd: 9.5\ne: {long}\n")
    assert read_yaml_object(file) == {"a": "1:30", "b": "-1:30.5", "c": 90, "d": 9.5, "e": long}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: " + "1:" * 200_000 + "1", "a number has more than 1,000 digits in line 1"),
        ("a: " + "1:" * 200_000 + "1.5", "a number has more than 1,000 digits in line 1"),
        ("a: 0x" + "f" * 999, "a number has more than 1,000 digits in line 1"),
        ("a: !!timestamp x", "it says of what type a value is"),
        ("a: !!bool x", "it says of what type a value is"),
        ("a: ! 1", "it says of what type a value is"),
        ("a: !!set {x}", "it says of what type a value is"),
        ("a: 2001-99-99", r"\(ValueError\)"),
        ("a: <<", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidModelError, match=f"^MLmodel is not valid YAML.*{says}"):
        read_yaml_object(tmp_path / "MLmodel")


def test_yaml_is_as_large_as_it_may_be(tmp_path: Path) -> None:
    file = tmp_path / "MLmodel"
    file.write_text("a: 0x" + "f" * 998 + "\n#" + "x" * ((1 << 19) - 1005))
    assert read_yaml_object(file) == {"a": 16**998 - 1}
    with file.open("a") as more:
        more.write("x")
    with pytest.raises(InvalidModelError, match="MLmodel is larger than 512 KiB"):
        read_yaml_object(file)


@pytest.mark.parametrize("part", ["x" * 255, "é" * 127 + "x"], ids=["ASCII", "two bytes each"])
def test_a_name_has_as_many_bytes_as_file_systems_take(tmp_path: Path, part: str) -> None:
    assert inside(tmp_path, f"{part}/{part}", "no") == tmp_path / part / part
    with pytest.raises(InvalidModelError, match=r"no: .* is no plain relative path"):
        inside(tmp_path, f"a/{part}x", "no")


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer_config.json"])
def test_a_key_twice_in_a_model_folder_is_refused(demo: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(text.replace("{", '{"x": 1, "x": 2,', 1), encoding="utf-8")
    with pytest.raises(InvalidModelError, match=f"{name} is not valid JSON: .* 'x' twice"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_deep_config_of_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "time_step_limit": Infinity}')
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(InvalidModelError, match=f"{name} is not valid JSON: it is nested deeper"):
        read_checkpoint(tmp_path)


HOSTILE: dict[str, Any] = {
    "backslash": "a\\b",
    "backslashes above": "a\\..\\b",
    "colon": "a:b",
    "drive": "C:/a",
    "the folder": ".",
    "above": "..",
    "empty": "",
    "absolute": "/a",
    "network": "//a/b",
    "above inside": "a/../b",
    "above behind": "a/..",
    "the folder inside": "a/./b",
    "two slashes": "a//b",
    "slash at the end": "a/",
    "NUL": "a\0b",
    "line end": "a\nb",
    "surrogate": "a\ud800b",
    "no string": 7,
    "nothing": None,
    "a list": ["a"],
}
# What users type may be less plain.
HARMLESS_SUBFOLDERS = {"a\\b", ".", "", "a//b", "a/", "a/./b", None}


def _decoder(demo: Path, work: Path, name: Any) -> None:
    folder = Path(shutil.copytree(demo, work / "model"))
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"]["filename"] = name
    (folder / "genai_config.json").write_text(json.dumps(config))
    read_folder(folder)


def _package(_: Path, work: Path, name: Any) -> None:
    body = {"variants": {"cpu": {"variant_directory": name}}}
    manifest = {"schema_version": 1, "components": {"model": body}}
    (work / "manifest.json").write_text(json.dumps(manifest))
    read_package(work)


def _manifest(_: Path, work: Path, name: Any) -> None:
    check_files(work, {name: {"size": 0, "sha256": ""}}, "size")


def _staged(demo: Path, work: Path, name: Any) -> None:
    stage({name: demo / "tokenizer.json"}, work / "model", link=False, outside=work / "x")


def _saved(work: Path, **section: Any) -> SavedModel:
    section = {"schema_version": 2, "task": "llm/v1/chat", "files": {}, "data": "model"} | section
    mlmodel = {"flavors": {FLAVOR_NAME: section}}
    (work / "MLmodel").write_text(json.dumps(mlmodel))  # which is YAML
    return read_saved(work)


def _data(_: Path, work: Path, name: Any) -> None:
    _saved(work, data=name)


def _listed(_: Path, work: Path, name: Any) -> None:
    _saved(work, files={name: {"size": 0, "sha256": "0" * 64}})


def _variant(_: Path, work: Path, name: Any) -> None:
    _saved(work, variants={"cpu": {"folder": name, "execution_provider": "cpu"}})


def _adapter(_: Path, work: Path, name: Any) -> None:
    _saved(work, adapters={"x": {"path": name, "size": 0, "sha256": "0" * 64}})


def _mirror(_: Path, work: Path, name: Any) -> None:
    (work / "mirror").mkdir()
    saved = _saved(work)
    checked_files(replace(saved, files_at=Reference(name, "main", "")), "off")


def _binary(_: Path, work: Path, name: Any) -> None:
    assemble_checkpoint(work, name, work / "out")


DOORS: dict[str, tuple[Callable[[Path, Path, Any], None], str]] = {
    "decoder.filename": (
        _decoder,
        r"leads out of the model folder|must (be the name of a file|name the graph)",
    ),
    "package": (_package, "leads out of the package"),
    "manifest": (_manifest, "lists a file outside the model"),
    "staged": (_staged, "cannot be saved under its name"),
    "listed": (_listed, "lists a file outside the model"),
    "data": (_data, "data folder outside the model"),
    "variant": (_variant, "folder outside the model"),
    "adapter": (_adapter, "adapter outside the model"),
    "mirror": (_mirror, "has no folder"),
    "model_binary": (_binary, "folder outside the model"),
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("door", "says"), DOORS.values(), ids=DOORS)
def test_hostile_names(
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    door: Callable[[Path, Path, Any], None],
    says: str,
    name: Any,
) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    if isinstance(name, list) and door in (_manifest, _staged, _listed):
        pytest.skip("these names are keys of a mapping")
    if name in (None, 7) and door is _listed:
        pytest.skip("JSON makes strings of these keys")
    # Neither YAML nor a folder's JSON has surrogates.
    other = "MLmodel is not valid YAML|holds a lone surrogate"
    with pytest.raises(GenAIError, match=f"{says}|{other}") as caught:
        door(demo, tmp_path, name)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_subfolders(name: Any) -> None:
    if isinstance(name, str | None) and name in HARMLESS_SUBFOLDERS:
        assert check_subfolder(name) in ("a/b", "a", "")
        return
    with pytest.raises(InvalidRequestError, match="subfolder must be") as caught:
        check_subfolder(name)
    assert caught.value.param == "subfolder"


def test_links_that_lead_out(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert inside(tmp_path / "in", "link/x", "no") == tmp_path / "in" / "link" / "x"
    with pytest.raises(InvalidModelError, match="link/x is a symbolic link that leads out"):
        inside(tmp_path / "in", "link/x", "no", links=False)
    assert inside(tmp_path / "in", "a/b c", "no", links=False).name == "b c"


def test_what_is_listed(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/b/d", ".x", "a/.y", ".z/a", "a-b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "folder").symlink_to(tmp_path / "a")
    assert list_visible(tmp_path) == ["a/b/d", "a/c", "a-b", "b", "lost"]
    assert list_visible(tmp_path, 1) == ["a/c", "a-b", "b", "lost"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(InvalidModelError, match=r"x\.json cannot be read: it is no file"):
        read_json_object(tmp_path / "x.json")


def test_a_key_twice_after_many_is_found_at_once(tmp_path: Path) -> None:
    keys = ",".join(f'"k{i}":0' for i in range(80_000))
    (tmp_path / "x.json").write_text(f'{{{keys},"k79999":1}}')
    with pytest.raises(InvalidModelError, match="'k79999' twice"):
        read_json_object(tmp_path / "x.json")


def test_paths_are_shown_without_where_they_are_on_the_machine(tmp_path: Path) -> None:
    assert show_path("a/b") == "'a/b'"
    assert show_path(tmp_path / "b") == "'.../b'"
    assert show_path("x" * 255) == f"'{'x' * 255}'"
    for text in ("x" * 256, "", "a\0b"):
        assert show_path(text) == "given"
