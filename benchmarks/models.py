"""The models that benchmarks and tests run: built here, with random weights, and kept in a cache.

    python -m benchmarks.models tiny-int4 mid4-int4-b32

Building needs the ``export`` extra. The cache is ``~/.cache/mlflow-phi3-onnx/models``, or what
``MLFLOW_PHI3_ONNX_CACHE`` says. A folder there is complete, or not there at all.

Greedy answers of these models never end by themselves: the rows of the output layer that belong to
the ids that end an answer are zero. So every answer has the length that is asked for, on the same
path through the code as any other answer.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_phi3_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "MID4",
    "MODELS",
    "TINY",
    "VOCABULARY",
    "WIDE2",
    "can_build",
    "checkpoint_folder",
    "model_folder",
]

VOCABULARY = 32064
"""Phi-3's: its tokenizer, its configuration and its logits have this many ids."""

CACHE_VARIABLE = "MLFLOW_PHI3_ONNX_CACHE"
ENDS = ("<|endoftext|>", "<|end|>")
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
_FORMAT = 1  # of what is written here: raise it to build everything anew


@dataclass(frozen=True)
class Checkpoint:
    """Weights as Hugging Face keeps them.

    Attributes:
        name: What the cache calls it.
        dtype: The weights' type, as torch names it.
        config: What differs from the defaults of ``Phi3Config``.
    """

    name: str
    dtype: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How onnxruntime-genai's builder makes a model of a checkpoint."""

    checkpoint: Checkpoint
    precision: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])


_WIDE: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
TINY = Checkpoint(
    "tiny",
    "float32",
    {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "initializer_range": 0.2,  # with the default, all tokens are about as likely as each other
    },
)
MID4 = Checkpoint("mid4", "bfloat16", {**_WIDE, "num_hidden_layers": 4})
WIDE2 = Checkpoint(
    "wide2",
    "float32",
    {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "initializer_range": 0.1,
    },
)
WORDS7 = Checkpoint(
    "words7",
    "bfloat16",
    {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 7,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
)
FULL = Checkpoint("full", "bfloat16", {**_WIDE, "num_hidden_layers": 32})

MODELS = {
    "tiny-fp32": Recipe(TINY, "fp32"),
    "tiny-int4": Recipe(TINY, "int4", {"block_size": 32, "accuracy_level": 4}),
    "mid4-int4-b32": Recipe(MID4, "int4", {"block_size": 32, "accuracy_level": 4}),
    "mid4-int4-b128": Recipe(MID4, "int4", {"block_size": 128, "accuracy_level": 4}),
    "words7-int4-b128": Recipe(WORDS7, "int4", {"block_size": 128, "accuracy_level": 4}),
    # Building one takes 23 GB of memory.
    "full-int4-b32": Recipe(FULL, "int4", {"block_size": 32, "accuracy_level": 4}),
    "full-int4-b128": Recipe(FULL, "int4", {"block_size": 128, "accuracy_level": 4}),
}
"""What can be built, by name; besides, there is ``demo``, which comes with the package.

``tiny`` has two narrow layers and a real vocabulary; ``mid4`` has four layers of Phi-3-mini's
width, and ``full`` all 32. ``words7`` has
Qwen2.5-1.5B's width and vocabulary, and 7 of its 28 layers.
"""


def can_build() -> bool:
    """Tell whether the ``export`` extra is installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "onnx_ir"))


def model_folder(name: str) -> Path:
    """Return the folder of a model; it is built if it is not in the cache.

    Args:
        name: ``demo``, or one of :data:`MODELS`.

    Raises:
        RuntimeError: If the builder fails; the message is what it printed.
    """
    if name == "demo":
        return Path(mlflow_phi3_onnx.demo_model_path())
    recipe = MODELS[name]
    key = [asdict(recipe), importlib.metadata.version("onnxruntime-genai")]
    return kept(name, key, lambda target: _build(recipe, target))


def checkpoint_folder(checkpoint: Checkpoint) -> Path:
    """Return the folder of a checkpoint, as ``transformers`` loads it; see :func:`model_folder`."""
    make = functools.partial(_write_checkpoint, checkpoint)
    return kept(f"{checkpoint.name}-checkpoint", asdict(checkpoint), make)


def kept(name: str, key: Any, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made first if need be.

    It is made beside its place and moved there when it is whole. Of two processes that make the
    same one at once, the second throws its own away.

    Args:
        name: What the folder's name begins with.
        key: What the folder depends on, as JSON.
        make: Fills an empty folder.
    """
    content = json.dumps([_FORMAT, _demo_tokenizer(), key], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    default = Path.home() / ".cache" / "mlflow-phi3-onnx" / "models"
    root = Path(os.environ.get(CACHE_VARIABLE) or default)
    target = root / f"{name}-{digest}"
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as work:
        made = Path(work) / "model"
        made.mkdir()
        make(made)
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(target)
    if not target.exists():
        raise RuntimeError(f"The cache folder could not be made: {target}")
    return target


def _demo_tokenizer() -> dict[str, Any]:
    path = Path(mlflow_phi3_onnx.demo_model_path()) / "tokenizer.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _words() -> Iterator[str]:
    """Invent words, short ones first."""
    syllables = ["".join(pair) for pair in itertools.product(_CONSONANTS, _VOWELS)]
    for count in itertools.count(2):
        for word in itertools.product(syllables, repeat=count):
            yield "▁" + "".join(word)


def wide_tokenizer() -> dict[str, Any]:
    """Widen the demo model's tokenizer to Phi-3's vocabulary.

    The new words are ordinary tokens that no merge leads to, so that a model can say them and a
    prompt is encoded as before. The control tokens stay last.

    Returns:
        The contents of ``tokenizer.json``.
    """
    tokenizer = _demo_tokenizer()
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    ordinary = len(vocabulary)
    control = [token for token in tokenizer["added_tokens"] if token["id"] >= ordinary]
    fresh = (word for word in _words() if word not in vocabulary)
    missing = VOCABULARY - ordinary - len(control)
    vocabulary.update(zip(itertools.islice(fresh, missing), itertools.count(ordinary)))
    for token in control:
        token["id"] += missing
    return tokenizer


def _write_tokenizer(target: Path) -> None:
    """Write tokenizer and chat template into a folder."""
    demo = Path(mlflow_phi3_onnx.demo_model_path())
    tokenizer = wide_tokenizer()
    config = json.loads((demo / "tokenizer_config.json").read_text(encoding="utf-8"))
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: token[key] for key in keys} for token in tokenizer["added_tokens"]
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (target / name).write_text(text, encoding="utf-8")
    template = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_checkpoint(checkpoint: Checkpoint, target: Path) -> None:
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ids = {token["content"]: token["id"] for token in wide_tokenizer()["added_tokens"]}
    ends = [ids[name] for name in ENDS]
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, **checkpoint.config}
    config = transformers.Phi3Config(
        **shape,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=ids["<s>"],
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, checkpoint.dtype)
    )
    with torch.no_grad():
        model.lm_head.weight[ends] = 0
    model.save_pretrained(target)
    _write_tokenizer(target)


def _build(recipe: Recipe, target: Path) -> None:
    """Run the builder as a process of its own, from an empty folder: its imports are intrusive."""
    checkpoint = checkpoint_folder(recipe.checkpoint)
    options = {"windowed_kv_cache": "false", **recipe.options}
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(checkpoint), "-o", str(target), "-c", str(Path(work) / "cache")]
        command += ["-p", recipe.precision, "-e", "cpu", "--extra_options"]
        done = subprocess.run(
            [*command, *(f"{key}={value}" for key, value in options.items())],
            cwd=work,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"The model builder failed:\n{done.stdout}\n{done.stderr}")
    # The builder writes the tokenizer as the library of its day saves it: keep our own.
    _write_tokenizer(target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the models of the command line and print their folders."""
    parser = argparse.ArgumentParser(prog="benchmarks.models", description="Build models.")
    parser.add_argument("names", nargs="+", choices=["demo", *MODELS], metavar="name")
    for name in parser.parse_args(arguments).names:
        print(model_folder(name))


if __name__ == "__main__":
    main()
