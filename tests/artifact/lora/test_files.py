"""Adapters as files: which are taken, which are refused, and how they are saved and loaded."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIError, GenAIModel, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.runtime.adapters import read_facts
from tests.support.adapted import (
    FIELDS,
    LAYERS,
    SPAIN,
    Delta,
    open_for_adapters,
    parameters,
    peft_tensors,
    refused,
    told,
    widths,
    write_adapter,
    write_peft,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture
def file(files: dict[str, Path]) -> Path:
    return files["warm"]


@pytest.fixture(scope="module")
def saved(folder: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "chat"
    adapters = {"warm": files["warm"], "y.2_z-": str(files["cold"])}
    mlflow_phi3_onnx.save_model(folder, path, adapters=adapters)
    return path


def flavor(path: Path) -> dict[str, Any]:
    return yaml.safe_load((path / "MLmodel").read_text())["flavors"]["mlflow_phi3_onnx"]


def test_the_graph_tells_its_inputs_for_adapters(demo: Path, folder: Path) -> None:
    assert read_folder(demo).graph.optional == set()
    graph = read_folder(folder).graph
    assert graph.optional == {f"{layer}.lora_{half}.weight" for layer in LAYERS for half in "AB"}
    inside, outside = widths(demo, LAYERS[0])
    assert graph.shapes[f"{LAYERS[0]}.lora_A.weight"] == (inside, "lora_r")
    assert graph.shapes[f"{LAYERS[0]}.lora_B.weight"] == ("lora_r", outside)


def test_what_is_read_of_an_adapter(file: Path, warm: dict[str, Delta]) -> None:
    assert read_facts(file) == {name: (1, array.shape) for name, array in parameters(warm).items()}


def test_an_adapter_that_is_cut_anywhere_is_refused(tmp_path: Path, warm: dict[str, Delta]) -> None:
    small = {name: array[:2, :2] for name, array in parameters(warm).items()}
    whole = write_adapter(tmp_path / "whole", small).read_bytes()
    assert read_facts(tmp_path / "whole")
    cut = tmp_path / "cut"
    for size in range(len(whole.rstrip(b"\0")) + 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(InvalidModelError, match="cut is not a whole"):
            read_facts(cut)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.timeout(60)
def test_an_adapter_that_is_a_pipe_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx_adapter")
    says = "'x' cannot be read. pipe.onnx_adapter is not a whole"
    adapters = {"x": tmp_path / "pipe.onnx_adapter"}
    refused(folder, tmp_path, adapters, InvalidModelError, says)


def test_an_adapter_with_any_byte_changed_is_read_or_refused(
    tmp_path: Path, warm: dict[str, Delta]
) -> None:
    small = {name: array[:1, :1] for name, array in parameters(warm).items()}
    whole = write_adapter(tmp_path / "whole", small).read_bytes()
    changed = tmp_path / "changed"
    for place in range(len(whole)):
        for value in (0, 0x7F, 0x80, 0xFF):
            changed.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read_facts(changed)
            except InvalidModelError:
                continue


def _wrong_names(named: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.replace("layers.", "layers.9"): array for name, array in named.items()}


def _other_type(named: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.astype(np.float16) for name, array in named.items()}


def _other_width(named: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array[:-1] if "lora_A" in name else array for name, array in named.items()}


def _other_axes(named: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.ravel() for name, array in named.items()}


WRONG: dict[str, tuple[Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]], str]] = {
    "names": (
        _wrong_names,
        r"'x' is not made for this model: it has model\.layers\.90\.attn\.qkv_proj\.lora_A\.weight,"
        r" .* and 1 more, and the graph has model\.layers\.0\.attn\.qkv_proj\.lora_A\.weight, .*"
        r" and 1 more\.",
    ),
    "type": (_other_type, "'x' has .* in another type of numbers"),
    "width": (
        _other_width,
        r"lora_A.weight has the shape \(\d+, 4\), and the graph has \(\d+, lora_r",
    ),
    "axes": (_other_axes, r"has the shape \(\d+\), and the graph has"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_an_adapter_of_another_model_is_neither_saved_nor_loaded(
    folder: Path,
    tmp_path: Path,
    warm: dict[str, Delta],
    change: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]],
    says: str,
) -> None:
    wrong = write_adapter(tmp_path / "wrong", change(parameters(warm)))
    refused(folder, tmp_path, {"x": wrong}, InvalidModelError, says)


def test_halves_that_do_not_fit_each_other(
    folder: Path, tmp_path: Path, warm: dict[str, Delta]
) -> None:
    named = parameters(warm)
    half = f"{LAYERS[0]}.lora_B.weight"
    says = f"lora_A and lora_B of {LAYERS[0]}, in 'x', do not belong together"
    shorter = write_adapter(tmp_path / "shorter", {**named, half: named[half][:2]})
    refused(folder, tmp_path, {"x": shorter}, InvalidModelError, says)
    del named[half]
    missing = write_adapter(tmp_path / "missing", named)
    refused(folder, tmp_path, {"x": missing}, InvalidModelError, says)


def test_parameters_of_unknown_meaning_that_do_not_fit_each_other_are_found_at_load(
    demo: Path, tmp_path: Path, warm: dict[str, Delta]
) -> None:
    form = "{layer}/{half}"
    folder = open_for_adapters(demo, tmp_path / "model", form=form)
    named = parameters(warm, form)
    right = write_adapter(tmp_path / "right", named)
    named[f"{LAYERS[0]}/B"] = named[f"{LAYERS[0]}/B"][:2]
    wrong = write_adapter(tmp_path / "wrong", named)
    with GenAIModel(folder, adapters={"x": right}) as model:
        assert model.adapters == ("x",)
    with pytest.raises(InvalidModelError, match="cannot run with 'z': the shapes of its param"):
        GenAIModel(folder, adapters={"x": right, "y": right, "z": wrong})


def test_a_file_that_is_no_adapter(folder: Path, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"{}", b"\0" * 64, os.urandom(4096))):
        path = tmp_path / f"{number}.onnx_adapter"
        path.write_bytes(content)
        refused(folder, tmp_path, {"x": path}, InvalidModelError, "'x' cannot be read")


def test_a_graph_without_inputs_for_adapters(
    demo: Path, file: Path, warm: dict[str, Delta], tmp_path: Path
) -> None:
    says = "graph has no inputs for adapters.* olive generate-adapter .*merge_and_unload"
    refused(demo, tmp_path, {"x": file}, InvalidModelError, says)
    peft = write_peft(tmp_path / "peft", peft_tensors(warm))
    refused(demo, tmp_path, {"x": peft}, InvalidModelError, says)


def test_a_checkpoint_is_not_converted_where_there_are_adapters(file: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).touch()
    with pytest.raises(InvalidModelError, match="graph has no inputs for adapters"):
        mlflow_phi3_onnx.save_model(checkpoint, tmp_path / "saved", adapters={"x": file})
    assert not (tmp_path / "saved").exists()


ARGUMENTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a list": (lambda file: [file], "a mapping of names to paths.*; got a list"),
    "a path": (str, "a mapping of names to paths.*; got a str"),
    "no name": (lambda file: {"": file}, "a name must be 1 to 64 letters"),
    "a path for a name": (lambda file: {"../x": file}, "a name must be .*; got '../x'"),
    "a hidden name": (lambda file: {".x": file}, "begin with a letter or digit"),
    "a long name": (lambda file: {"x" * 65: file}, "1 to 64 letters"),
    "a number for a name": (lambda file: {5: file}, "a name must be .*; got 5"),
    "names alike": (lambda file: {"x": file, "X": file}, "only in upper and lower case"),
    "the model's own name": (lambda file: {"phi3": file}, "'phi3' is the name that responses"),
    "no path": (lambda _: {"x": None}, "'x' must be a path; got null"),
    "nothing there": (lambda file: {"x": file / "x"}, "nothing at the path of 'x'"),
    "an empty folder": (
        lambda file: {"x": file.parents[1]},
        "the folder of 'x' has no adapter_config.json and no adapter_model.safetensors",
    ),
}


@pytest.mark.parametrize(("make", "says"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_are_refused(
    folder: Path, file: Path, tmp_path: Path, make: Callable[[Path], Any], says: str
) -> None:
    refused(folder, tmp_path, make(file), GenAIError, says)


def test_what_is_saved(saved: Path, files: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    kept = {"warm": files["warm"].read_bytes(), "y.2_z-": files["cold"].read_bytes()}
    assert flavor(saved)["adapters"] == {
        name: {
            "path": f"adapters/{name}.onnx_adapter",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for name, content in kept.items()
    }
    for name, content in kept.items():
        assert (saved / "adapters" / f"{name}.onnx_adapter").read_bytes() == content
    mlflow_phi3_onnx.save_model(folder, tmp_path / "plain")
    assert "adapters" not in flavor(tmp_path / "plain")
    assert not (tmp_path / "plain" / "adapters").exists()


def test_a_saved_model_answers_with_its_adapters(
    saved: Path, answers: dict[str | None, str]
) -> None:
    with mlflow_phi3_onnx.load_model(saved) as model:
        assert set(model.adapters) == {"warm", "y.2_z-"}
        for name, wanted in ((None, None), ("warm", "warm"), ("y.2_z-", "cold")):
            assert told(model.chat(**FIELDS, adapter=name)) == answers[wanted]


def test_a_pyfunc_takes_an_adapter_for_each_row(
    saved: Path, answers: dict[str | None, str]
) -> None:
    pyfunc: Any = mlflow.pyfunc.load_model(str(saved))
    rows = pd.DataFrame({"messages": [SPAIN] * 3, "adapter": ["warm", None, "y.2_z-"]})
    given = pyfunc.predict(rows.assign(max_tokens=12))
    assert [told(answer) for answer in given] == [answers[name] for name in ("warm", None, "cold")]
    assert [answer["model"] for answer in given] == ["warm", "phi3", "y.2_z-"]
    (named,) = pyfunc.predict({**FIELDS, "model": "warm"})
    assert told(named) == answers["warm"]
    (beside,) = pyfunc.predict(dict(FIELDS), params={"adapter": "warm"})
    assert (told(beside), beside["model"]) == (answers["warm"], "warm")
    chunks: list[Any] = list(pyfunc.predict_stream({**FIELDS, "adapter": "y.2_z-"}))
    assert {chunk["model"] for chunk in chunks} == {"y.2_z-"}
    with pytest.raises(InvalidRequestError, match=r"adapter must be one of warm, y\.2_z-"):
        pyfunc.predict({**FIELDS, "adapter": "z"})


def test_text_generation_takes_an_adapter_for_all_rows(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    mlflow_phi3_onnx.save_model(folder, path, task="text-generation", adapters={"x": file})
    pyfunc = mlflow.pyfunc.load_model(str(path))
    prompts = pd.DataFrame({"prompt": ["The capital of Spain", "Who"]})
    given = pyfunc.predict(prompts, params={"adapter": "x", "max_tokens": 6})
    with GenAIModel(folder, adapters={"x": file}) as model:
        assert given == model.generate(list(prompts["prompt"]), adapter="x", max_tokens=6)
        assert given != model.generate(list(prompts["prompt"]), max_tokens=6)


@pytest.mark.usefixtures("tracking")
def test_a_logged_model_and_what_is_made_of_it(
    folder: Path,
    file: Path,
    warm: dict[str, Delta],
    answers: dict[str | None, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    peft = write_peft(tmp_path / "peft", peft_tensors(warm))
    info = mlflow_phi3_onnx.log_model(folder, name="chat", adapters={"x": file, "peft": peft})
    with mlflow_phi3_onnx.load_model(info.model_uri) as model:
        for name in ("x", "peft"):
            assert told(model.chat(**FIELDS, adapter=name)) == answers["warm"]
    mlflow_phi3_onnx.save_model(info.model_uri, tmp_path / "again", adapters={"z": file})
    assert "adapters (peft, x), which are not carried over" in caplog.text
    assert list(flavor(tmp_path / "again")["adapters"]) == ["z"]


@pytest.mark.parametrize("damage", ["cut", "lost", "outside"])
def test_a_saved_adapter_that_is_damaged(
    folder: Path, file: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "chat"
    mlflow_phi3_onnx.save_model(folder, path, adapters={"x": file})
    kept = path / "adapters" / "x.onnx_adapter"
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-8])
    elif damage == "lost":
        kept.unlink()
    else:
        content = (path / "MLmodel").read_text().replace("adapters/x.onnx", "../x.onnx")
        (path / "MLmodel").write_text(content)
    says = {"cut": "was cut short", "lost": "has lost its file", "outside": "outside the model"}
    with pytest.raises(InvalidModelError, match=says[damage]):
        mlflow_phi3_onnx.load_model(path)
