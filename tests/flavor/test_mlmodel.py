"""An MLmodel file is not trusted: whatever is wrong in it is an error that names it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
import yaml

from mlflow_phi3_onnx import FLAVOR_NAME, InvalidModelError, load_model
from mlflow_phi3_onnx.artifact.saved import read_saved
from mlflow_phi3_onnx.flavor.inspect import inspect_model

if TYPE_CHECKING:
    from collections.abc import Callable

Section = dict[str, Any]
SHA = "0" * 64


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved model to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def doors(path: Path) -> tuple[Callable[[], Any], ...]:
    return (
        lambda: inspect_model(str(path)),
        lambda: load_model(path),
        lambda: mlflow.pyfunc.load_model(str(path)),
    )


def put(*keys: str) -> Callable[[Any], Callable[[Section], None]]:
    *outer, last = keys

    def with_value(value: Any) -> Callable[[Section], None]:
        def change(section: Section) -> None:
            for key in outer:
                section = section[key]
            section[last] = value

        return change

    return with_value


def drop(key: str) -> Callable[[Section], Any]:
    return lambda section: section.pop(key)


WRONG: dict[str, tuple[Callable[[Section], Any], str]] = {
    "schema_version": (put("schema_version")("2"), "schema_version must be an integer"),
    "no schema_version": (drop("schema_version"), "schema_version is missing"),
    "a key that is no text": (put("files")({1: {}}), "files has a key that is no text; it is 1"),
    "files a list": (put("files")([]), "files must be an object; it is a list"),
    "files missing": (drop("files"), "no section .*files"),
    "a file that is no object": (put("files", "x")(3), "files.x must be an object; it is 3"),
    "size missing": (put("files", "x")({"sha256": SHA}), "files.x.size is missing"),
    "size a text": (put("files", "x")({"size": "32938", "sha256": SHA}), "files.x.size must be"),
    "size negative": (put("files", "x")({"size": -1, "sha256": SHA}), "files.x.size must be"),
    "hash missing": (put("files", "x")({"size": 1}), "files.x.sha256 is missing"),
    "hash of another kind": (put("files", "x")({"size": 1, "sha256": "x"}), "files.x.sha256 must"),
    "a name that is a number": (
        lambda s: s["files"].update({5: {}}),
        "files has a key that is no text; it is 5",
    ),
    "a name of 5,000 letters": (
        put("files", "x" * 5000)({"size": 1, "sha256": SHA}),
        "lists a file outside the model",
    ),
    "task": (put("task")("xx"), "task must be one of llm/v1/chat"),
    "task missing": (drop("task"), "task is missing"),
    "data a number": (put("data")(5), "names a data folder outside the model"),
    "data null": (put("data")(None), "names a data folder outside the model"),
    "data missing": (drop("data"), "no section .*reference"),
    "adapters a list": (put("adapters")(["x"]), "adapters must be an object"),
    "an adapter without a path": (put("adapters")({"x": {}}), "adapter outside the model"),
    "an adapter elsewhere": (
        put("adapters")({"x": {"path": "model/tokenizer.json", "size": 1, "sha256": SHA}}),
        "adapters.x.path must be in the folder adapters",
    ),
    "variants a list": (put("variants")(["cpu"]), "variants must be an object"),
    "a variant without a folder": (
        put("variants")({"cpu": {"execution_provider": "cpu"}}),
        "names a folder outside the model",
    ),
    "a variant for what is no provider": (
        put("variants")({"cpu": {"folder": "cpu", "execution_provider": "x"}}),
        "execution_provider must be one of .*cpu; it is a string",
    ),
    "source": (put("source")("x"), "source must be an object"),
    "version": (put("onnxruntime_genai_version")(5), "onnxruntime_genai_version must be a string"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_the_flavors_section_is_named(
    copy: Path, change: Callable[[Section], Any], says: str
) -> None:
    file = copy / "MLmodel"
    document = yaml.safe_load(file.read_text("utf-8"))
    change(document["flavors"][FLAVOR_NAME])
    file.write_text(yaml.safe_dump(document), "utf-8")
    for door in doors(copy):
        with pytest.raises(InvalidModelError, match=says) as caught:
            door()
        assert "MLmodel" in caught.value.message
        assert str(copy) not in caught.value.message


def test_a_reference_must_be_whole(copy: Path) -> None:
    file = copy / "MLmodel"
    document = yaml.safe_load(file.read_text("utf-8"))
    section = document["flavors"][FLAVOR_NAME]
    del section["data"]
    for reference in (5, {}, {"repo_id": 5}, {"repo_id": "a/b", "revision": "c", "subfolder": 1}):
        section["reference"] = reference
        file.write_text(yaml.safe_dump(document), "utf-8")
        with pytest.raises(InvalidModelError, match=r"MLmodel: .*reference"):
            read_saved(copy)


CONFIGS: dict[str, tuple[Any, str]] = {
    "a list": (["x"], "config must be an object; it is a list"),
    "verify": ({"verify": "off"}, "config.verify is set, but how closely a model is checked is"),
}


@pytest.mark.parametrize(("config", "says"), CONFIGS.values(), ids=CONFIGS)
def test_the_saved_configuration_is_not_trusted_either(copy: Path, config: Any, says: str) -> None:
    file = copy / "MLmodel"
    document = yaml.safe_load(file.read_text("utf-8"))
    document["flavors"]["python_function"]["config"] = config
    file.write_text(yaml.safe_dump(document), "utf-8")
    for door in doors(copy)[: 3 if isinstance(config, dict) else 2]:  # a list fails in MLflow
        with pytest.raises(InvalidModelError, match=says):
            door()


DOCUMENTS: dict[str, tuple[str, str]] = {
    "a key twice": ("flavors: {}\nflavors: {}\n", "'flavors' twice in one mapping in line 1"),
    "not YAML": ("a: [", "is not valid YAML"),
    "a list": ("[]", "must hold a mapping; it holds a list"),
    "nothing": ("", "must hold a mapping; it holds null"),
    "deep": ("a: " + "[" * 65 + "]" * 65, "nested deeper than 64 levels"),
    "very deep": ("[" * 100_000, "nest(ed|ing)"),
    "aliases in aliases": (
        "a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "or by aliases in line 2",
    ),
    "itself": ("a: &a [*a]", "or by aliases"),
    "an object of Python": ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    "a number without end": ("a: " + "9" * 5000, "is not valid YAML"),
    "flavors a list": ("flavors: []", "flavors must be an object"),
    "a section that is a list": (f"flavors: {{{FLAVOR_NAME}: []}}", "must be an object"),
}


@pytest.mark.parametrize(("text", "says"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_that_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidModelError, match=f"MLmodel.*{says}"):
        read_saved(tmp_path)


def test_documents_that_are_read(copy: Path) -> None:
    """YAML refers to what stands twice, as where a user gives one object under two keys."""
    file = copy / "MLmodel"
    text = file.read_text("utf-8") + "more:\n  a: &id001 [1]\n  b: *id001\n"
    file.write_text("\ufeff" + text, "utf-8")
    assert read_saved(copy).task == "llm/v1/chat"
    file.write_text("a: " + "[" * 63 + "]" * 63 + "\n" + text, "utf-8")
    assert read_saved(copy).files.keys() == {path.name for path in (copy / "model").iterdir()}


def test_links_are_refused_whatever_verify_says(copy: Path, demo: Path) -> None:
    (copy / "model" / "chat_template.jinja").unlink()
    (copy / "model" / "chat_template.jinja").symlink_to(demo / "chat_template.jinja")
    for level in ("off", "size", "hash"):
        with pytest.raises(InvalidModelError, match=r"chat_template\.jinja is a symbolic link"):
            load_model(copy, verify=level)


def test_a_plain_folder_says_what_to_do(demo: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"GenAIModel\(path\), or log it with log_model"):
        load_model(demo)
