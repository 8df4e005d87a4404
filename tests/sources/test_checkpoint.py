"""Checkpoints as sources, up to their conversion: what is checked without PyTorch."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import (
    DependencyError,
    InvalidModelError,
    InvalidRequestError,
    SourceError,
    UnsupportedParameterError,
    save_model,
)
from mlflow_phi3_onnx.sources.convert.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write float32 zeros in safetensors' form."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in shapes.items():
        size = 4 * rows * columns
        offsets = [end, end + size]
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def checkpoint(demo: Path, tmp_path: Path) -> Path:
    """A checkpoint that is whole as far as can be told without loading it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder)
    config = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", {"a.weight": [64, 32], "b.weight": [8, 8]})
    return folder


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def shard(folder: Path, *, lost: bool = False) -> None:
    """Put the weights into two files, as large models have them."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / "model.safetensors").rename(folder / names[0])
    write_safetensors(folder / names[1], {"c.weight": [10, 10]})
    weights = {"a.weight": names[0], "b.weight": names[0], "c.weight": names[1]}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    if lost:
        (folder / names[1]).unlink()


def test_what_is_read_of_a_checkpoint(checkpoint: Path) -> None:
    read = read_checkpoint(checkpoint)
    assert (read.architecture, read.layers, read.parameters) == ("Phi3ForCausalLM", 2, 2112)


def test_parameters_of_all_weights_files_are_counted(checkpoint: Path) -> None:
    shard(checkpoint)
    # Not among the model's own: a copy in another form, as some repositories have beside it.
    write_safetensors(checkpoint / "consolidated.safetensors", {"a": [100, 100]})
    assert read_checkpoint(checkpoint).parameters == 2212


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer. Save one beside it"),
    "no architecture": (lambda f: change(f, architectures=None), "names no architectures"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "quantized": (
        lambda f: change(f, quantization_config={"quant_method": "awq"}),
        "quantized already",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-100]
        ),
        r"model\.safetensors is cut short: it has [\d,]+ bytes of [\d,]+\.",
    ),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "not a safetensors file",
    ),
    "other weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec"),
        "not a safetensors file",
    ),
    "lost weights": (lambda f: shard(f, lost=True), "lost its file model-00002-of-00002.safeten"),
    "bad index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 1}'),
        "has no weight_map",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_before_it_is_converted(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(checkpoint)
    with pytest.raises(InvalidModelError, match=says) as caught:
        save_model(checkpoint, tmp_path / "saved")
    assert str(tmp_path) not in caught.value.message
    assert not (tmp_path / "saved").exists()


def test_without_pytorch_the_extra_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(DependencyError, match=r"mlflow-phi3-onnx\[export\].*Missing:.* torch"):
        save_model(checkpoint, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "precision": ({"precision": "int3"}, InvalidRequestError, "int4, int8, fp32 on cpu"),
    "precision of CPU": ({"precision": "fp16"}, InvalidRequestError, "int4, int8, fp32 on cpu"),
    "precision kind": ({"precision": 4}, InvalidRequestError, "precision must be one of"),
    "precision of DirectML": (
        {"precision": "int8", "export_options": {"execution_provider": "dml"}},
        InvalidRequestError,
        "precision must be one of int4, fp16 on dml",
    ),
    "no mapping": ({"export_options": 128}, InvalidRequestError, "must be a mapping; got 128"),
    "unknown": (
        {"export_options": {"blocksize": 128}},
        UnsupportedParameterError,
        "blocksize is not an export option. Did you mean block_size",
    ),
    "block size": (
        {"export_options": {"block_size": 100}},
        InvalidRequestError,
        "block_size must be one of 16, 32, 64, 128, 256",
    ),
    "block size kind": (
        {"export_options": {"block_size": True}},
        InvalidRequestError,
        "block_size must be one of",
    ),
    "algorithm": (
        {"export_options": {"algorithm": "gptq"}},
        InvalidRequestError,
        "algorithm must be one of default, rtn, k_quant, rtn_last",
    ),
    "mixed algorithm": (
        {"precision": "int8", "export_options": {"algorithm": "k_quant_mixed"}},
        InvalidRequestError,
        "algorithm must be one of default, rtn, k_quant with int8",
    ),
    "provider": (
        {"export_options": {"execution_provider": "tpu"}},
        InvalidRequestError,
        "execution_provider must be one of cpu, cuda, dml",
    ),
    "no effect": (
        {"precision": "fp32", "export_options": {"block_size": 32}},
        UnsupportedParameterError,
        "block_size is for int4 and int8, and has no effect on fp32",
    ),
    "tokenizer": ({"tokenizer": object()}, InvalidRequestError, "tokenizer is for a model of tr"),
}


@pytest.mark.parametrize(("arguments", "error", "says"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_cannot_be_honoured_is_refused(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        save_model(checkpoint, tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("arguments", [{"precision": "int4"}, {"export_options": {}}])
def test_options_of_a_conversion_are_refused_where_nothing_is_converted(
    demo: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match="the folder is in ONNX form already"):
        save_model(demo, tmp_path / "saved", **arguments)


def test_a_checkpoint_beside_models_is_converted_where_a_precision_is_given(
    checkpoint: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo, checkpoint / "onnx")
    with pytest.raises(SourceError, match=r"several models.*: onnx\. Or convert its"):
        save_model(checkpoint, tmp_path / "saved")
    save_model(checkpoint, tmp_path / "saved", subfolder="onnx")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyError):
        save_model(checkpoint, tmp_path / "converted", precision="int4")


@pytest.mark.parametrize(
    ("model", "came"),
    [(7, "7"), ([1], "a list"), (object(), "an object"), (b"org/name", "bytes"), (None, "null")],
    ids=["a number", "a list", "an object", "bytes", "nothing"],
)
def test_what_is_no_source_says_what_may_be(tmp_path: Path, model: Any, came: str) -> None:
    with pytest.raises(InvalidRequestError, match="model must be the path of a folder") as caught:
        save_model(model, tmp_path / "saved")
    assert caught.value.message.endswith(f"; got {came}.")
    assert caught.value.param == "model"
