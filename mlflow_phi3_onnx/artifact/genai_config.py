"""``genai_config.json``: what it says of the model, checked before native code reads it.

onnxruntime-genai reads the file itself. It takes numbers as doubles and formats the patterns of
names with C's ``printf``; and ONNX Runtime takes options as an open set. So what is not known to
be harmless is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.bounds import (
    MAX_CONTEXT,
    MAX_END_IDS,
    MAX_HEAD_SIZE,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
)
from mlflow_phi3_onnx.core.checks import (
    MAX_EXACT_FLOAT,
    allows,
    boolean,
    integer,
    number,
    some_of,
    string,
)
from mlflow_phi3_onnx.core.document import Document
from mlflow_phi3_onnx.core.files import read_json_object
from mlflow_phi3_onnx.core.sampling import SAMPLING
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.runtime.providers import provider_name
from mlflow_phi3_onnx.runtime.session_options import (
    refused_provider_options,
    refused_session_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.core.checks import Check

__all__ = ["CONFIG_FILE", "GenAIConfig", "read_config"]

CONFIG_FILE = "genai_config.json"

_INT32 = integer()
_NUMBER = number(-1e6, 1e6)
_SEARCH: Mapping[str, Check[Any]] = {
    **SAMPLING,
    **dict.fromkeys(("early_stopping", "past_present_share_buffer"), boolean),
    **dict.fromkeys(
        ("batch_size", "chunk_size", "min_length", "num_beams", "num_return_sequences"), _INT32
    ),
    "random_seed": _INT32,
    "max_length": integer(0),  # 0 is onnxruntime-genai's word for the context's length
}


@dataclass(frozen=True)
class GenAIConfig:
    """What is known of a model before its graph is read.

    Attributes:
        model_type: The architecture's name, as onnxruntime-genai gives it (``phi3``, ``llama``).
        context_length: The most tokens of prompt and completion together.
        vocab_size: How many token ids there are.
        eos_token_ids: The ids that end a completion, one or more, all of the vocabulary.
        unknown_eos_ids: Those that it names beside them and the vocabulary has not.
        pad_token_id: The id that it pads batches with; where it names none, one that ends them.
        graphs: The files of its graphs, relative to the folder, each by the place that names it.
            One is the decoder's, or several, where that is a pipeline.
        files: The other files that it names, likewise.
        placeholders: The ids that stand for an image or a sound in a prompt.
        layers: How many layers the decoder has.
        heads: How many heads of keys and values each layer has.
        head_size: The width of one of them.
        past: The patterns of the names of the graph's inputs for keys and for values, each with one
            ``%d``; only one where the graph has both in one tensor.
        shares_buffer: Whether it says that keys and values are written in place.
        sliding_window: Whether the config says that attention has a window.
        threads: The threads of one operator that it asks for.
        providers: The execution providers that it asks for, by their short names; else ``cpu``.
        search: The model's own defaults for generation.
    """

    model_type: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    unknown_eos_ids: tuple[int, ...]
    pad_token_id: int
    graphs: Mapping[str, str]
    files: Mapping[str, str]
    placeholders: frozenset[int]
    layers: int
    heads: int
    head_size: int
    past: tuple[str, ...]
    shares_buffer: bool
    sliding_window: bool
    threads: int | None
    providers: tuple[str, ...]
    search: Mapping[str, Any]

    @property
    def decoder_files(self) -> list[str]:
        """The files of the decoder's graphs, in order."""
        return [name for at, name in self.graphs.items() if at.startswith("model.decoder.")]

    @property
    def filename(self) -> str:
        """The file of the decoder's graph, or of the first of them."""
        return self.decoder_files[0]

    @property
    def modalities(self) -> list[str]:
        """What prompts of the model may hold: ``text``, and ``image`` and ``audio``."""
        of_section = {"vision": "image", "speech": "audio"}
        sections = {place.split(".")[1] for place in self.graphs}
        return ["text", *(of_section[name] for name in of_section if name in sections)]


def read_config(folder: Path) -> GenAIConfig:
    """Read and check a model folder's ``genai_config.json``.

    Raises:
        InvalidModelError: If it is missing, no strict JSON, lacks something, has a value out of
            bounds, or would have native code run code, write files or read other folders.
    """
    document = Document(read_json_object(folder / CONFIG_FILE), CONFIG_FILE)
    _check_native(document)
    model = document.section("model")
    decoder = model.section("decoder")
    search = _read_search(document.section("search", needed=False))
    vocab_size = model.read("vocab_size", _count(MAX_VOCABULARY))
    ends, unknown = _end_ids(model, vocab_size)
    pad = model.values.get("pad_token_id")
    return GenAIConfig(
        model_type=model.read("type", _architecture),
        context_length=model.read("context_length", _count(MAX_CONTEXT)),
        vocab_size=vocab_size,
        eos_token_ids=ends,
        unknown_eos_ids=unknown,
        pad_token_id=pad if type(pad) is int and 0 <= pad < vocab_size else ends[0],
        graphs=_graphs(model),
        files=dict(_named(model, ("config_filename", "adapter_filename"))),
        placeholders=_placeholders(model),
        layers=decoder.read("num_hidden_layers", _count(MAX_LAYERS)),
        heads=decoder.read("num_key_value_heads", _count(MAX_HEADS)),
        head_size=decoder.read("head_size", _count(MAX_HEAD_SIZE)),
        past=_past(decoder.section("inputs", needed=False)),
        shares_buffer=search.get("past_present_share_buffer", False),
        sliding_window=bool(decoder.values.get("sliding_window")),
        threads=decoder.section("session_options", needed=False).values.get("intra_op_num_threads"),
        providers=_providers(decoder),
        search=search,
    )


@allows("the architecture's name")
def _architecture(value: Any) -> str:
    if not value:
        raise ValueError
    return string(value)


@allows("the name of a file")
def _file(value: Any) -> str:
    if not value:
        raise ValueError
    return string(value)


@allows("a name with one %d, for the layer's number, and no other %")
def _pattern(value: Any) -> str:
    if value is None or string(value).count("%d") != 1 or value.count("%") != 1:
        raise ValueError
    return value


@allows(f"a token id, 0 or above, or a list of up to {MAX_END_IDS:,} of them")
def _ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not 0 < len(ids) <= MAX_END_IDS or any(isinstance(one, bool) for one in ids):
        raise ValueError
    return tuple(map(integer(0), ids))


def _count(most: int) -> Check[int]:
    return allows(f"a positive integer up to {most:,}")(integer(1, most))


def _named(part: Document, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Find the files that a part and all that is in it names under some keys."""
    for key, value in part.values.items():
        if key in keys and value:
            yield part.place + key, part.read(key, _file)
        for at, inner in enumerate(_flat(value)):
            if isinstance(inner, dict):
                place = f"{key}[{at}]" if isinstance(value, list) else key
                yield from _named(Document(inner, part.file, f"{part.place}{place}."), keys)


def _graphs(model: Document) -> dict[str, str]:
    decoder = model.section("decoder")
    if "encoder" in model.values:
        raise InvalidModelError(
            f"{CONFIG_FILE}: model.encoder is set. Models that write what an encoder has read, such"
            " as Whisper and Marian, do not go on from a text; only those that do are taken."
        )
    graphs = dict(_named(model, ("filename",)))
    if not any(place.startswith(decoder.place) for place in graphs):
        raise decoder.refusal("filename", "must name the graph, or the graphs in pipeline")
    return graphs


def _placeholders(model: Document) -> frozenset[int]:
    ids = {model.values.get(f"{kind}_token_id") for kind in ("image", "audio", "video")}
    if model.values["type"] == "phi4mm":  # onnxruntime-genai knows them by heart
        ids |= {200010, 200011}
    return frozenset(one for one in ids if type(one) is int)


def _past(inputs: Document) -> tuple[str, ...]:
    if inputs.values.get("past_names"):
        return (inputs.read("past_names", _pattern),)
    kinds = ("key", "value")
    return tuple(inputs.read(f"past_{k}_names", _pattern, f"past_key_values.%d.{k}") for k in kinds)


def _end_ids(model: Document, vocab_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that end completions: those of the vocabulary, and the others."""
    key = "eos_token_id" if "eos_token_id" in model.values else "pad_token_id"
    ids = model.read(key, _ids)
    known = tuple(one for one in ids if one < vocab_size)
    if not known:
        raise model.refusal(key, "names no id below vocab_size, so that completions never end")
    return known, tuple(one for one in ids if one >= vocab_size)


def _providers(decoder: Document) -> tuple[str, ...]:
    options = decoder.section("session_options", needed=False).values.get("provider_options") or []
    return tuple(provider_name(name) for option in options for name in option) or ("cpu",)


def _read_search(search: Document) -> dict[str, Any]:
    clean = {name: search.read(name, _SEARCH.get(name, _NUMBER)) for name in search.values}
    if clean.get("max_length") == 0:
        del clean["max_length"]
    if clean.get("num_beams", 1) != 1:
        raise search.refusal(
            "num_beams",
            f"is {clean['num_beams']}, but only greedy search and sampling are supported. Set it"
            " to 1",
        )
    return clean


def _check_native(part: Document) -> None:
    """Refuse what native code would read otherwise, format, load, or write to.

    Wherever it stands: a model may have several parts, each with options of its own.
    """
    for key, value in part.values.items():
        if key == "custom_ops_library" and value:
            raise InvalidModelError(
                f"{CONFIG_FILE} names a custom_ops_library. It is native code, and a model is data:"
                " remove the entry, or build a graph that does without it."
            )
        if key == "run_options" and value:
            raise part.refusal(key, "is set; some of its options write files, so none is taken")
        if key == "session_options":
            _check_session_options(part.section(key))
        elif key.endswith("_names"):
            part.read(key, _pattern)
        for inner in _flat(value):
            if isinstance(inner, dict):
                _check_native(Document(inner, part.file, f"{part.place}{key}."))
            elif isinstance(inner, int | float) and abs(inner) >= MAX_EXACT_FLOAT:
                raise part.refusal(key, "is a number that onnxruntime-genai would read inexactly")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    else:
        yield value


def _check_session_options(options: Document) -> None:
    refused = list(refused_session_options(options.values))
    providers = options.values.get("provider_options") or []
    if not isinstance(providers, list) or not all(
        isinstance(provider, dict) and all(isinstance(o, dict) for o in provider.values())
        for provider in providers
    ):
        raise options.refusal(
            "provider_options",
            "must be a list of objects, each with an execution provider's name and its options",
        )
    for provider in providers:
        for values in provider.values():
            refused += refused_provider_options(values)
    if refused := sorted({*refused} - {"custom_ops_library"}):
        raise InvalidModelError(
            f"{CONFIG_FILE} sets options of ONNX Runtime that a model may not set, or not to this"
            f" value: {some_of(refused)}. Some options write files or load libraries, so"
            " only known ones are taken: remove these entries."
        )
