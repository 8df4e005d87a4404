"""A small text-generation pipeline of transformers, made offline.

It stands for a model of the Hugging Face hub. Its weights are those of the demo model that comes
with ``mlflow_phi3_onnx``, turned back from 4 bits into PyTorch's floats. Needs the ``export``
extra.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnx import numpy_helper

import mlflow_phi3_onnx

ZERO = 8  # the code of a weight of 0: codes are from 0 to 15


def make_pipeline() -> transformers.TextGenerationPipeline:
    """Make the demo model's pipeline."""
    folder = Path(mlflow_phi3_onnx.demo_model_path())
    stored = read_tensors(folder)
    model = transformers.Phi3ForCausalLM(read_config(folder, stored))
    model.load_state_dict(read_weights(stored, model.config.num_hidden_layers))
    # Not AutoTokenizer: LlamaTokenizer of transformers 5 forgets a setting when it is saved, and a
    # model that was logged with it would get other token ids than this one.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return transformers.pipeline("text-generation", model=model.eval(), tokenizer=tokenizer)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Read the graph's tensors, by name.

    From a copy: onnx reads no file with several hard links, and installers such as uv link files
    from their cache.
    """
    with tempfile.TemporaryDirectory() as copy:
        for name in ("model.onnx", "model.onnx.data"):
            shutil.copy(folder / name, copy)
        graph = onnx.load(Path(copy, "model.onnx")).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def read_config(folder: Path, stored: dict[str, np.ndarray]) -> transformers.Phi3Config:
    """Read the model's shape."""
    model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = model["decoder"]
    return transformers.Phi3Config(
        vocab_size=model["vocab_size"],
        hidden_size=decoder["hidden_size"],
        intermediate_size=len(stored["model.layers.0.mlp.up_proj.MatMul.weight_Q4"]),
        num_hidden_layers=decoder["num_hidden_layers"],
        num_attention_heads=decoder["num_attention_heads"],
        num_key_value_heads=decoder["num_key_value_heads"],
        max_position_embeddings=model["context_length"],
        original_max_position_embeddings=model["context_length"],
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=model["bos_token_id"],
        eos_token_id=model["eos_token_id"],
        pad_token_id=model["pad_token_id"],
    )


def read_weights(stored: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """Read the weights, by the names that transformers gives them."""
    weights = {
        "model.embed_tokens.weight": stored["model.embed_tokens.weight"],
        "model.norm.weight": stored[f"model.layers.{layers}.final_norm_layernorm.weight"],
        "lm_head.weight": widen(stored, "lm_head"),
    }
    for layer in (f"model.layers.{i}" for i in range(layers)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = stored[f"{layer}.{name}.weight"]
        for name in ("qkv_proj", "o_proj"):
            weights[f"{layer}.self_attn.{name}.weight"] = widen(stored, f"{layer}.attn.{name}")
        gate, up, down = (
            widen(stored, f"{layer}.mlp.{name}") for name in ("gate_proj", "up_proj", "down_proj")
        )
        weights[f"{layer}.mlp.gate_up_proj.weight"] = np.concatenate([gate, up])
        weights[f"{layer}.mlp.down_proj.weight"] = down
    return {name: torch.from_numpy(weight.copy()) for name, weight in weights.items()}


def widen(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Turn a matrix from 4 bits into floats, ``[outputs, inputs]``.

    ONNX Runtime's ``MatMulNBits`` holds two weights a byte, ``[outputs, blocks, bytes of a
    block]``, and a scale for each block.
    """
    packed = stored[f"{name}.MatMul.weight_Q4"]
    outputs, blocks, _ = packed.shape
    scales = stored[f"{name}.MatMul.weight_scales"].reshape(outputs, blocks, 1)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(outputs, blocks, -1)
    return ((codes.astype(np.float32) - ZERO) * scales).reshape(outputs, -1)
