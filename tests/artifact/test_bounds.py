"""Counts, sizes and numbers in a model's files are bounded, and believed only where they fit."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.artifact.onnx.graph import read_graph
from mlflow_phi3_onnx.core.bounds import (
    MAX_CONTEXT,
    MAX_END_IDS,
    MAX_GRAPH_DEPTH,
    MAX_GRAPH_FIELDS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_RANK,
    MAX_VOCABULARY,
)
from tests.support.edits import edit_json

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo model."""
    return Path(shutil.copytree(demo, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_json(folder / "genai_config.json", change)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    *sections, key = path.split(".")

    def change(config: dict[str, Any]) -> None:
        for section in sections:
            config = config[section]
        config[key] = value

    return change


VALUES: dict[str, tuple[str, Any]] = {
    "layers": ("model.decoder.num_hidden_layers", MAX_LAYERS + 1),
    "a billion layers": ("model.decoder.num_hidden_layers", 10**9),
    "layers beyond all numbers": ("model.decoder.num_hidden_layers", 10**30),
    "heads": ("model.decoder.num_key_value_heads", MAX_HEADS + 1),
    "head size": ("model.decoder.head_size", 2**20),
    "context": ("model.context_length", MAX_CONTEXT + 1),
    "vocabulary": ("model.vocab_size", MAX_VOCABULARY + 1),
    "end ids": ("model.eos_token_id", [1] * (MAX_END_IDS + 1)),
    "no end id": ("model.eos_token_id", []),
    "an end id of 64 bits": ("model.eos_token_id", [2**31]),
    "an end id that is true": ("model.eos_token_id", [True]),
    "a negative end id": ("model.eos_token_id", [2544, -1]),
    "no end id in the vocabulary": ("model.eos_token_id", [99999]),
    "threads": ("model.decoder.session_options.intra_op_num_threads", 100_000),
    "search": ("search", []),
    "top_k": ("search.top_k", {}),
    "do_sample": ("search.do_sample", 1),
    "top_p": ("search.top_p", None),
    "temperature": ("search.temperature", "1"),
    "no_repeat_ngram_size": ("search.no_repeat_ngram_size", 2.5),
    "n-grams of less than nothing": ("search.no_repeat_ngram_size", -3),
    "a negative max_length": ("search.max_length", -5),
    "what nobody knows": ("search.x", "text"),
    "session_options": ("model.decoder.session_options", [1]),
    "provider_options": ("model.decoder.session_options.provider_options", {"cuda": {}}),
    "a provider without options": ("model.decoder.session_options.provider_options", [{"x": 1}]),
    "a number that a double rounds": ("model.bos_token_id", 2**53),
    "type": ("model.type", 3),
    "no type": ("model.type", ""),
    "filename": ("model.decoder.filename", ["model.onnx"]),
    "inputs": ("model.decoder.inputs", "x"),
    "run_options": ("model.decoder.run_options", {"enable_profiling": "x"}),
    "more digits than Python writes": ("model.vocab_size", 10**4000),
}


@pytest.mark.parametrize(("key", "value"), VALUES.values(), ids=VALUES)
def test_a_configuration_out_of_bounds_is_refused_by_its_key(
    folder: Path, key: str, value: Any
) -> None:
    edit(folder, put(key, value))
    begun = time.process_time()
    with pytest.raises(InvalidModelError) as caught:
        read_folder(folder)
    # A bound on work, not a figure: before there were bounds this took a minute, or all memory.
    assert time.process_time() - begun < 10
    assert key.rsplit(".", 1)[-1] in caught.value.message
    assert "genai_config.json" in caught.value.message


OUT_OF_BOUNDS = {
    "temperature": (-5, 2.5),
    "top_p": (-0.1, 7),
    "top_k": (-2, 2**31),
    "repetition_penalty": (-1, 0, 11),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, some in OUT_OF_BOUNDS.items() for value in some]
)
def test_a_default_is_refused_where_a_request_would_be(
    demo: Path, folder: Path, name: str, value: float
) -> None:
    edit(folder, put(f"search.{name}", value))
    with pytest.raises(InvalidModelError) as of_folder:
        GenAIModel(folder)
    with GenAIModel(demo) as model, pytest.raises(InvalidRequestError) as of_request:
        model.generate("a", **{name: value})
    rule = of_request.value.message.partition(" must be ")[2].partition(";")[0]
    assert f"genai_config.json: search.{name} must be {rule};" in of_folder.value.message


PUBLISHED: list[dict[str, Any]] = [
    {"top_k": 1, "temperature": 1.0, "top_p": 1.0, "max_length": 4096, "random_seed": -1},
    {"top_k": 50, "temperature": 0.0, "repetition_penalty": 1.1, "do_sample": True},
    {"top_k": 0, "top_p": 0.95, "no_repeat_ngram_size": 0, "max_length": 0},
    {"num_beams": 1, "num_return_sequences": 1, "length_penalty": -1.0, "early_stopping": True},
    {"min_length": 0, "diversity_penalty": 0.0, "length_penalty": 1.0},
]


@pytest.mark.parametrize("search", PUBLISHED)
def test_what_published_models_have_as_defaults_is_taken(
    folder: Path, search: dict[str, Any]
) -> None:
    edit(folder, lambda config: config["search"].update(search))
    with GenAIModel(folder) as model:
        assert model.generate("The capital", max_tokens=2)


def test_the_bounds_themselves_are_allowed(folder: Path) -> None:
    edit(folder, put("model.eos_token_id", [1] * MAX_END_IDS))
    edit(folder, put("model.context_length", MAX_CONTEXT))
    edit(folder, put("model.decoder.num_hidden_layers", MAX_LAYERS))
    read = read_folder(folder)
    assert (len(read.eos_token_ids), read.context_length) == (MAX_END_IDS, MAX_CONTEXT)
    assert read.layers == MAX_LAYERS


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_key_value_heads", 1, "num_key_value_heads is 1, but the cache of model.onnx has 3"),
        ("num_key_value_heads", 9, "num_key_value_heads is 9, but the cache of model.onnx has 3"),
    ],
)
def test_a_cache_of_another_size_than_the_graphs_is_refused(
    folder: Path, key: str, value: int, says: str
) -> None:
    edit(folder, put(f"model.decoder.{key}", value))
    with pytest.raises(InvalidModelError, match=says):
        GenAIModel(folder)


@pytest.mark.parametrize(
    "name", ["genai_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_file_without_end_is_not_read_into_memory(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(20 << 30)  # sparse: it takes no place
    with pytest.raises(InvalidModelError, match=f"{name} is larger than"):
        GenAIModel(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("genai_config.json", "is larger than 1 MiB"),
        ("tokenizer_config.json", "could have more than 1,048,576 values"),
        ("tokenizer.json", "could have more than 3,145,728 values"),
    ],
)
def test_a_document_of_many_small_values_is_not_read(folder: Path, name: str, says: str) -> None:
    text = (folder / name).read_text(encoding="utf-8").rstrip()
    values = "[" + "{}," * (5 << 20) + "{}]"
    (folder / name).write_text(f'{text[:-1]}, "zz": {values}}}', encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(InvalidModelError, match=f"^{name} .*{says}"):
        GenAIModel(folder)
    # A bound on work, not a figure: before there were bounds this took many times as long.
    assert time.process_time() - begun < 10


def field(number: int, value: int | bytes) -> bytes:
    """Write a field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def external(**entries: str) -> bytes:
    """Write a tensor whose numbers are in a file."""
    pairs = [field(13, field(1, k.encode()) + field(2, v.encode())) for k, v in entries.items()]
    return b"".join((field(1, 4), field(2, 1), *pairs, field(14, 1)))


NODE = field(1, field(4, b"Add"))
SECRET = external(location="../secret.bin", offset="0", length="16")
ATTRIBUTE = field(1, b"value")


def model(*parts: bytes, functions: bytes = b"") -> bytes:
    return field(7, NODE + b"".join(parts)) + functions


HIDDEN = {
    "initializer": model(field(5, SECRET)),
    "sparse values": model(field(15, field(1, SECRET))),
    "sparse indices": model(field(15, field(2, SECRET))),
    "attribute": model(field(1, field(5, ATTRIBUTE + field(5, SECRET)))),
    "attribute with tensors": model(field(1, field(5, ATTRIBUTE + field(10, SECRET)))),
    "sparse attribute": model(field(1, field(5, ATTRIBUTE + field(22, field(1, SECRET))))),
    "sparse attributes": model(field(1, field(5, ATTRIBUTE + field(23, field(2, SECRET))))),
    "subgraph": model(field(1, field(5, field(6, field(5, SECRET))))),
    "subgraphs": model(field(1, field(5, field(11, field(5, SECRET))))),
    "function": model(
        functions=field(25, field(7, field(5, ATTRIBUTE + field(5, SECRET)))),
    ),
    "default of a function": model(functions=field(25, field(11, field(5, SECRET)))),
    "training": model(functions=field(20, field(2, field(5, SECRET)))),
}


@pytest.mark.parametrize("content", HIDDEN.values(), ids=HIDDEN)
def test_external_data_is_found_wherever_a_graph_can_hold_it(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    assert read_graph(folder / "model.onnx").external == {"../secret.bin": 16}
    with pytest.raises(InvalidModelError, match="external data leads out of the model folder"):
        read_folder(folder)


def nested(levels: int) -> bytes:
    graph = NODE
    for _ in range(levels):
        graph = NODE + field(1, field(4, b"If") + field(5, field(6, graph)))
    return graph


GRAPHS: dict[str, tuple[bytes, str]] = {
    "negative offset": (model(field(5, external(location="x", offset="-1"))), "no place"),
    "negative length": (model(field(5, external(location="x", length="-16"))), "no place"),
    "no number": (model(field(5, external(location="x", length="1e3"))), "no place"),
    "no location": (model(field(5, external(offset="0"))), "in which file"),
    "an address in memory": (
        model(field(5, external(location="*/_ORT_MEM_ADDR_/*", offset="140000000"))),
        "in which file",
    ),
    "location twice": (
        model(field(5, external(location="x") + external(location="y"))),
        "says twice",
    ),
    "axes": (model(field(5, field(1, 2) * (MAX_RANK + 1))), f"more than {MAX_RANK} axes"),
    "packed axes": (model(field(5, field(1, varint(2**63 - 1) * 100_000))), "axes"),
    "a negative axis": (model(field(5, field(1, -1))), "negative length"),
    "depth": (field(7, nested(MAX_GRAPH_DEPTH + 1)), f"deeper than {MAX_GRAPH_DEPTH} levels"),
    "great depth": (field(7, nested(1500)), "deeper than"),
    "a number of a field above 32 bits": (
        model(field(5, field(1, 4) + field((1 << 29) | 13, b""))),
        "not a whole ONNX model",
    ),
    "the field 0": (model(field(0, 1)), "not a whole ONNX model"),
    "a number above 64 bits": (model() + b"\x08" + b"\xff" * 9 + b"\x02", "not a whole ONNX"),
    "a number of eleven bytes": (model() + b"\x08" + b"\x80" * 10 + b"\x00", "not a whole ONNX"),
    "more than there is": (model() + varint(7 << 3 | 2) + varint(1), "not a whole ONNX model"),
    "a group": (model() + varint(9 << 3 | 3) + varint(9 << 3 | 4), "not a whole ONNX model"),
    "two graphs": (model() + model(), "not a whole ONNX model"),
    "a tensor in two parts": (
        model(field(1, field(5, ATTRIBUTE + field(5, SECRET) + field(5, SECRET)))),
        "not a whole ONNX model",
    ),
    "a type of two kinds": (
        model(field(11, field(1, b"x") + field(2, field(1, field(1, 1)) + field(4, b"")))),
        "not a whole ONNX model",
    ),
    "a format of ONNX Runtime's own": (field(31, b"\0ORTM") + model(), "not a whole ONNX model"),
    "fields": (field(7, field(3, 0) * MAX_GRAPH_FIELDS), "not a whole ONNX model"),
}


@pytest.mark.parametrize(("content", "says"), GRAPHS.values(), ids=GRAPHS)
def test_a_graph_out_of_bounds_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InvalidModelError, match=f"^model.onnx .*{re.escape(says)}"):
        read_graph(tmp_path / "model.onnx")


def test_a_graph_within_bounds_is_read(tmp_path: Path) -> None:
    axes = field(1, 3) * MAX_RANK
    tensor = field(8, b"w") + axes + field(2, 1)
    parts = external(location="x", offset="8", length="16"), external(location="x", length="20")
    tensors = [field(5, part) for part in (tensor, *parts)]
    (tmp_path / "model.onnx").write_bytes(model(*tensors, nested(MAX_GRAPH_DEPTH)))
    graph = read_graph(tmp_path / "model.onnx")
    assert graph.external == {"x": 24}
    assert graph.parameters == 3**MAX_RANK + 4
    assert graph.operators == {"Add": 2 + MAX_GRAPH_DEPTH, "If": MAX_GRAPH_DEPTH}
