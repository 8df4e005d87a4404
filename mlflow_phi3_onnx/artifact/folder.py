"""A model folder as ONNX Runtime GenAI has it: what it must hold, and what it says of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.genai_config import CONFIG_FILE, GenAIConfig, read_config
from mlflow_phi3_onnx.artifact.onnx.graph import GraphFacts, join, read_graph
from mlflow_phi3_onnx.core.bounds import MAX_LISTING_BYTES
from mlflow_phi3_onnx.core.characters import half_character
from mlflow_phi3_onnx.core.checks import some_of
from mlflow_phi3_onnx.core.dtypes import TENSOR_TYPES
from mlflow_phi3_onnx.core.files import inside, read_json_object, refuse_unlisted, show_path
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONFIG_FILE", "TOKENIZER_FILES", "ModelFolder", "read_folder"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

# Other forms of a tokenizer, which are not read.
_OTHER_TOKENIZERS = (
    *("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json"),
    "tiktoken.model",
)


@dataclass(frozen=True, kw_only=True)
class ModelFolder(GenAIConfig):
    """A model folder that has been read and found whole: its configuration, and what is beside it.

    Attributes:
        path: Where it is.
        tokenizer_path: Where its tokenizer and its chat template are.
        graph: What was read of the decoder's graph, or of its graphs, as if they were one.
        others: What was read of the other graphs, by their files.
    """

    path: Path
    tokenizer_path: Path
    graph: GraphFacts
    others: Mapping[str, GraphFacts]

    @property
    def parameters(self) -> int:
        """How many weights all graphs have."""
        return self.graph.parameters + sum(facts.parameters for facts in self.others.values())

    @property
    def kv_inputs(self) -> list[str]:
        """The graph's inputs for keys and values."""
        names = [name.replace("%d", str(at)) for at in range(self.layers) for name in self.past]
        return [name for name in names if name in self.graph.inputs]

    @property
    def cache_grows(self) -> bool:
        """Whether each step makes a longer KV cache beside the last one, instead of writing in it.

        So it is for graphs that append to their cache, which folders say of themselves.
        """
        return not self.shares_buffer or len(self.past) == 1

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the KV cache of one sequence.

        A cache that grows is there twice: before a step and after it.
        """
        elements = [self.graph.inputs[name] for name in self.kv_inputs]
        sizes = [TENSOR_TYPES[kind].size for kind in elements if kind in TENSOR_TYPES]
        tensors = 2 * (len(elements) // len(self.past) or self.layers)
        once = tensors * self.heads * self.head_size * max(sizes, default=4)
        return 2 * once if self.cache_grows else once

    @property
    def states(self) -> list[str]:
        """The graph's inputs for what is neither keys nor values, and has the same size always.

        Convolutions and recurrent layers have such a state. It is that of all tokens so far: no
        earlier one can be had back, and padding goes into it.
        """
        shapes = self.graph.shapes
        others = set(shapes) - set(self.kv_inputs)
        return sorted(
            name
            for name in others
            if len(shapes[name]) > 2 and sum(isinstance(axis, str) for axis in shapes[name]) < 2
        )

    @property
    def two_ranges(self) -> bool:
        """Whether the graph has other position factors beyond its original context (LongRoPE).

        onnxruntime-genai computes such a model rightly only one row at a time: in a batch, every
        row gets the factors of the longest.
        """
        return "If" in self.graph.operators

    @property
    def native_files(self) -> set[str]:
        """The names of the files that ONNX Runtime reads."""
        read = (self.graph, *self.others.values())
        external = {name for facts in read for name in facts.external}
        return {CONFIG_FILE, *self.graphs.values(), *self.files.values(), *external}


def read_folder(path: str | Path, tokenizer_path: Path | None = None) -> ModelFolder:
    """Read a model folder and check that it is whole, without loading the model.

    Args:
        path: The folder with ``genai_config.json``.
        tokenizer_path: The folder with its tokenizer; None for the same.

    Raises:
        InvalidModelError: If something is missing, cut short, damaged, out of bounds or leads out
            of the folder, or would run native code that comes with the model.
    """
    path = Path(path)
    tokenizer_path = tokenizer_path or path
    _check_layout(path)
    config = read_config(path)
    _check_tokenizer(tokenizer_path)
    for place, name in config.files.items():
        file = _existing(path, name, f"{CONFIG_FILE}: {place}")
        if place.endswith("config_filename"):
            read_json_object(file)
    read = {name: _read_graph(path, place, name) for place, name in config.graphs.items()}
    graph = join([read.pop(name) for name in dict.fromkeys(config.decoder_files)])
    _check_cache(config, graph)
    return ModelFolder(
        **vars(config), path=path, tokenizer_path=tokenizer_path, graph=graph, others=read
    )


def _check_layout(path: Path) -> None:
    if half_character(str(path.absolute())):  # as Python has bytes that are no text
        raise InvalidModelError(
            "The path of the model folder is not text in UTF-8, which native code needs. Rename or"
            " copy the folder."
        )
    if not path.is_dir():
        kind = "a file" if path.is_file() else "no folder"
        raise InvalidModelError(
            f"There is {kind} at the path {show_path(path)}. A model must be a folder with"
            f" {CONFIG_FILE}; saved models and URIs are for load_model."
        )
    if (path / CONFIG_FILE).is_file():
        return
    message = f"The folder has no {CONFIG_FILE}, so it is not an ONNX Runtime GenAI model."
    # Not deeper: the path may be that of a home folder.
    found = [p for depth in range(1, 5) for p in path.glob("*/" * depth + CONFIG_FILE)]
    inside = sorted(p.parent.relative_to(path).as_posix() for p in found)
    if inside:
        message += f" These folders inside it have one; give one of them: {some_of(inside)}."
    raise InvalidModelError(message)


def _check_tokenizer(path: Path) -> None:
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            continue
        others = [other for other in _OTHER_TOKENIZERS if (path / other).is_file()]
        only = f", only {' and '.join(others)}" if others else ""
        raise InvalidModelError(
            f"The model folder has no {name}{only}. Make it where transformers is installed, from"
            ' the checkpoint that the model was made from: python -c "from transformers import'
            " AutoTokenizer as A; A.from_pretrained('CHECKPOINT').save_pretrained('MODEL_FOLDER')\""
        )
    # Infinity is taken: transformers writes one as model_max_length, and only Python reads it.
    read_json_object(path / "tokenizer_config.json", infinite=True, most=MAX_LISTING_BYTES)


def _read_graph(path: Path, place: str, name: str) -> GraphFacts:
    graph = read_graph(_existing(path, name, f"{CONFIG_FILE}: {place}"))
    # ONNX Runtime looks for weights beside the graph.
    beside = name.rpartition("/")[0]
    external = {
        f"{beside}/{file}" if beside else file: least for file, least in graph.external.items()
    }
    for location, least in external.items():
        file = _existing(path, location, f"{name}: external data")
        size = file.stat().st_size
        if size < least:
            raise InvalidModelError(
                f"{location} is cut short: it has {size:,} bytes and {name} needs {least:,}."
            )
    return replace(graph, external=external)


def _check_cache(config: GenAIConfig, graph: GraphFacts) -> None:
    """Check that the KV cache has the size that the configuration says: memory is planned by it."""
    for layer in range(config.layers):
        shape = graph.shapes.get(config.past[0].replace("%d", str(layer)), ())
        for axis, key in ((-3, "heads"), (-1, "head_size")):
            length = shape[axis] if len(shape) >= 4 else ""
            if isinstance(length, int) and length != getattr(config, key):
                name = {"heads": "num_key_value_heads"}.get(key, key)
                raise InvalidModelError(
                    f"{CONFIG_FILE}: model.decoder.{name} is {getattr(config, key)}, but the cache"
                    f" of {' and '.join(config.decoder_files)} has {length}."
                )


def _existing(path: Path, name: Any, what: str) -> Path:
    file = inside(path, name, f"{what} leads out of the model folder")
    if not file.is_file():
        raise InvalidModelError(f"The model folder has no {name} ({what}).")
    refuse_unlisted(path, name)
    return file
