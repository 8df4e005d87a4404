"""A model folder as ONNX Runtime GenAI has it: what it must hold, and what it says of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.onnx.graph import GraphFacts, read_graph
from mlflow_phi3_onnx.core.dtypes import TENSOR_TYPES
from mlflow_phi3_onnx.core.files import inside, read_json_object
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.runtime.providers import provider_name
from mlflow_phi3_onnx.runtime.session_options import (
    refused_provider_options,
    refused_session_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CONFIG_FILE", "TOKENIZER_FILES", "ModelFolder", "read_folder", "some_of"]

CONFIG_FILE = "genai_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

_SHOWN = 12

# Other forms of a tokenizer, which are not read.
_OTHER_TOKENIZERS = (
    *("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json"),
    "tiktoken.model",
)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that has been read and found whole.

    Attributes:
        path: Where it is.
        tokenizer_path: Where its tokenizer and its chat template are.
        config: ``genai_config.json``.
        graph: What was read of the decoder's graph.
        context_length: The most tokens of prompt and answer together.
        vocab_size: How many token ids there are.
        eos_token_ids: The ids that end an answer.
        kv_bytes_per_token: Bytes that one token takes in the KV cache of one sequence.
    """

    path: Path
    tokenizer_path: Path
    config: Mapping[str, Any]
    graph: GraphFacts
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    kv_bytes_per_token: int

    @property
    def model_type(self) -> str:
        """The architecture's name, as onnxruntime-genai gives it (``phi3``, ``llama``, ...)."""
        return str(self.config["model"]["type"])

    @property
    def two_ranges(self) -> bool:
        """Whether the graph has other position factors beyond its original context (LongRoPE).

        onnxruntime-genai computes such a model rightly only one row at a time: in a batch, every
        row gets the factors of the longest.
        """
        return "If" in self.graph.operators

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that it asks for, by their short names; else ``cpu``."""
        options = self.decoder.get("session_options", {}).get("provider_options") or []
        names = [provider_name(name) for option in options for name in option]
        return tuple(names) or ("cpu",)

    @property
    def native_files(self) -> set[str]:
        """The names of the files that ONNX Runtime reads."""
        return {CONFIG_FILE, self.decoder["filename"], *self.graph.external}

    @property
    def search(self) -> Mapping[str, Any]:
        """The model's own defaults for generation."""
        return self.config.get("search", {})

    @property
    def decoder(self) -> Mapping[str, Any]:
        """The decoder's section of the config."""
        return self.config["model"]["decoder"]


def read_folder(path: str | Path, tokenizer_path: Path | None = None) -> ModelFolder:
    """Read a model folder and check that it is whole, without loading the model.

    Args:
        path: The folder with ``genai_config.json``.
        tokenizer_path: The folder with its tokenizer; None for the same.

    Raises:
        InvalidModelError: If something is missing, cut short, damaged or leads out of the folder,
            or would run native code that comes with the model.
    """
    path = Path(path)
    tokenizer_path = tokenizer_path or path
    _check_layout(path)
    config = read_json_object(path / CONFIG_FILE)
    _check_native_options(config)
    model = _section(config, "model")
    decoder = _section(model, "decoder", "model.")
    context_length = _positive(model, "context_length", "model.")
    vocab_size = _positive(model, "vocab_size", "model.")
    if not isinstance(model.get("type"), str):
        raise InvalidModelError(f"{CONFIG_FILE}: model.type must be the architecture's name.")
    if not isinstance(config.get("search", {}), dict):
        raise InvalidModelError(f"{CONFIG_FILE}: search must be an object.")
    beams = config.get("search", {}).get("num_beams", 1)
    if beams != 1:
        raise InvalidModelError(
            f"{CONFIG_FILE}: search.num_beams is {beams!r}, but only greedy search and sampling are"
            " supported. Set it to 1."
        )
    _check_tokenizer(tokenizer_path)
    graph = _check_graph(path, decoder)
    return ModelFolder(
        path=path,
        tokenizer_path=tokenizer_path,
        config=config,
        graph=graph,
        context_length=context_length,
        vocab_size=vocab_size,
        eos_token_ids=_eos_token_ids(model),
        kv_bytes_per_token=_kv_bytes_per_token(decoder, graph),
    )


def _check_layout(path: Path) -> None:
    if not path.is_dir():
        kind = "a file" if path.is_file() else "no folder"
        raise InvalidModelError(
            f"A model must be a folder with {CONFIG_FILE}; there is {kind} at the path given."
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


def some_of(names: Sequence[str], shown: int = _SHOWN) -> str:
    """List names for a message, the first few of many, and count the others."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _check_native_options(config: Any) -> None:
    """Refuse what would have ONNX Runtime run code, write files or read other folders.

    Wherever it stands: a model may have several parts, each with options of its own.

    Raises:
        InvalidModelError: If there is such an option, or a pattern of names that native code
            formats is not one.
    """
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if key == "custom_ops_library" and value:
            raise InvalidModelError(
                f"{CONFIG_FILE} names a custom_ops_library. It is native code, and a model is data:"
                " remove the entry, or build a graph that does without it."
            )
        if key == "session_options":
            _check_session_options(value)
        if isinstance(key, str) and key.endswith("_names") and not _is_name_pattern(value):
            raise InvalidModelError(
                f"{CONFIG_FILE}: {key} must be a name with one %d, for the layer's number, and no"
                " other %."
            )
        if isinstance(value, dict | list):
            _check_native_options(value)


def _check_session_options(options: Any) -> None:
    if not isinstance(options, dict):
        raise InvalidModelError(f"{CONFIG_FILE}: session_options must be an object.")
    refused = [name for name in refused_session_options(options) if name != "custom_ops_library"]
    providers = options.get("provider_options") or []
    if not isinstance(providers, list) or not all(
        isinstance(provider, dict) and all(isinstance(o, dict) for o in provider.values())
        for provider in providers
    ):
        raise InvalidModelError(
            f"{CONFIG_FILE}: session_options.provider_options must be a list of objects, each with"
            " an execution provider's name and its options."
        )
    for provider in providers:
        for values in provider.values():
            refused += refused_provider_options(values)
    if refused:
        raise InvalidModelError(
            f"{CONFIG_FILE} sets options of ONNX Runtime that a model may not set, or not to this"
            f" value: {some_of(sorted(set(refused)))}. Some options write files or load libraries,"
            " so only known ones are taken: remove these entries."
        )


def _is_name_pattern(value: Any) -> bool:
    return isinstance(value, str) and value.count("%d") == 1 and value.count("%") == 1


def _section(config: Mapping[str, Any], key: str, prefix: str = "") -> Mapping[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict):
        raise InvalidModelError(f"{CONFIG_FILE} has no section {prefix}{key}.")
    return value


def _positive(section: Mapping[str, Any], key: str, prefix: str) -> int:
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidModelError(f"{CONFIG_FILE}: {prefix}{key} must be a positive integer.")
    return value


def _eos_token_ids(model: Mapping[str, Any]) -> tuple[int, ...]:
    value = model.get("eos_token_id", model.get("pad_token_id"))
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise InvalidModelError(
            f"{CONFIG_FILE}: model.eos_token_id must be a token id or a list of them."
        )
    return tuple(ids)


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
    read_json_object(path / "tokenizer_config.json", infinite=True)


def _check_graph(path: Path, decoder: Mapping[str, Any]) -> GraphFacts:
    name = decoder.get("filename")
    if not isinstance(name, str) or not name:
        raise InvalidModelError(f"{CONFIG_FILE}: model.decoder.filename must name the graph.")
    graph = read_graph(_existing(path, name, f"{CONFIG_FILE}: model.decoder.filename"))
    for external in graph.external.values():
        file = _existing(path, external.location, f"{name}: external data")
        size = file.stat().st_size
        if size < external.size:
            raise InvalidModelError(
                f"{external.location} is cut short: it has {size:,} bytes and {name} needs"
                f" {external.size:,}."
            )
    return graph


def _existing(path: Path, name: Any, what: str) -> Path:
    file = inside(path, name, f"{what} leads out of the model folder")
    if not file.is_file():
        raise InvalidModelError(f"The model folder has no {name} ({what}).")
    return file


def _kv_bytes_per_token(decoder: Mapping[str, Any], graph: GraphFacts) -> int:
    layers = _positive(decoder, "num_hidden_layers", "model.decoder.")
    heads = _positive(decoder, "num_key_value_heads", "model.decoder.")
    size = _positive(decoder, "head_size", "model.decoder.")
    elements = [kind for name, kind in graph.inputs.items() if "past_key_values" in name]
    sizes = [TENSOR_TYPES[kind].size for kind in elements if kind in TENSOR_TYPES]
    width = max(sizes, default=4)
    return 2 * layers * heads * size * width
