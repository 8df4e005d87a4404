"""The same checkpoint for llama.cpp: written as GGUF, and quantized by llama.cpp itself."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.models import ENDS, Checkpoint, checkpoint_folder, kept, wide_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["QUANTIZED", "LlamaModel", "llama_file"]

QUANTIZED = {"Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}
"""The forms that are made, and what llama.cpp calls them."""

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # llama.cpp's kinds of tokens
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_file(checkpoint: Checkpoint, form: str) -> Path:
    """Return a checkpoint as a GGUF file; it is made if it is not in the cache.

    Args:
        checkpoint: A checkpoint of Phi-3's architecture.
        form: One of :data:`QUANTIZED`.
    """
    version = importlib.metadata.version("llama-cpp-python")
    key = [asdict(checkpoint), version, form, "with its vocabulary"]
    name = f"{checkpoint.name}-gguf-{form}"
    return kept(name, key, lambda target: _make(checkpoint, form, target)) / "model.gguf"


class LlamaModel:
    """A GGUF file in llama.cpp, run in token ids.

    Args:
        file: The file.
        threads: How many threads compute.
        rows: The most sequences at once.
        context: Tokens of all sequences together.
    """

    def __init__(self, file: Path, threads: int, rows: int, context: int) -> None:
        self._api: Any = importlib.import_module("llama_cpp")
        api = self._api
        api.llama_backend_init()
        self._quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._quiet, None)
        self._model = api.llama_model_load_from_file(
            str(file).encode(), api.llama_model_default_params()
        )
        options = api.llama_context_default_params()
        options.n_ctx, options.n_seq_max = context, rows
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, options)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp cannot load {file.name}.")
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(512, 0, rows)

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def run(self, rows: list[list[int]], start: int) -> list[int]:
        """Go on with sequences, and return the most likely next token of each.

        Args:
            rows: The new tokens of each.
            start: How many tokens each has already.
        """
        batch, place = self._batch, 0
        for row, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, start + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                batch.logits[place] = offset == len(tokens) - 1
                place += 1
        batch.n_tokens = place
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama.cpp failed while it ran the model.")
        ends = np.cumsum([len(tokens) for tokens in rows]) - 1
        return [int(self._logits(int(end)).argmax()) for end in ends]

    def _logits(self, place: int) -> NDArray[np.float32]:
        values = self._api.llama_get_logits_ith(self._context, place)
        pointer = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))


def _make(checkpoint: Checkpoint, form: str, target: Path) -> None:
    api: Any = importlib.import_module("llama_cpp")
    whole = target / "whole.gguf"
    _write(checkpoint_folder(checkpoint), whole)
    options = api.llama_model_quantize_default_params()
    options.ftype = getattr(api, QUANTIZED[form])
    made = str(target / "model.gguf").encode()
    failed = api.llama_model_quantize(str(whole).encode(), made, ctypes.byref(options))
    whole.unlink()
    if failed:
        raise RuntimeError(f"llama.cpp could not make {form} of {checkpoint.name}.")


def _write(folder: Path, file: Path) -> None:
    """Write a checkpoint as GGUF in 16 bits."""
    import gguf
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(file, "phi3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _write_vocabulary(writer)
    for name, array in _tensors(folder):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: Any) -> None:
    """Write the checkpoint's tokenizer as one of SentencePiece, whose scores are the merges' order.

    Both join the words that prompts are made of in the same order; other texts may differ.
    """
    tokenizer = wide_tokenizer()
    pieces: dict[str, int] = tokenizer["model"]["vocab"]
    order = {
        left + right: place for place, (left, right) in enumerate(tokenizer["model"]["merges"])
    }
    tokens = {number: piece for piece, number in pieces.items()}
    kinds = {n: _BYTE if _BYTE_PIECE.fullmatch(p) else _NORMAL for n, p in tokens.items()}
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _UNKNOWN if added["content"] == "<unk>" else _CONTROL
    ids = sorted(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([tokens[number] for number in ids])
    writer.add_token_scores([-float(order.get(tokens[number], len(tokens))) for number in ids])
    writer.add_token_types([kinds[number] for number in ids])
    known = {content: number for number, content in tokens.items()}
    writer.add_bos_token_id(known["<s>"])
    writer.add_eos_token_id(known[ENDS[0]])
    writer.add_add_bos_token(False)


def _tensors(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                *layer, known = name.removesuffix(".weight").partition("layers.")[::2]
                number, _, part = known.partition(".")
                found = f"blk.{number}.{_NAMES[part]}" if known else _NAMES[layer[0]]
                form = torch.float32 if "norm" in found else torch.float16
                yield f"{found}.weight", tensors.get_tensor(name).to(form).numpy()
