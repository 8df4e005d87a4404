"""A tokenizer of Phi-3's kind: BPE over '▁'-marked words, with bytes for everything rare."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rendering import TEMPLATE
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

UNKNOWN, BEGIN, CLOSE = "<unk>", "<s>", "</s>"
END_OF_TEXT, END = "<|endoftext|>", "<|end|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
PHI3_TOKENS = (
    END_OF_TEXT,
    ASSISTANT,
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    END,
    "<|placeholder5|>",
    "<|placeholder6|>",
    USER,
)
TOOL_TOKENS = ("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LETTERS = [chr(code) for code in range(0x21, 0x7F)] + list("▁áçéíñóúüß¡¿")
WORDS = Regex(r"▁?[^\W\d_]+|_[^\W\d_]+|\d|▁?[^\w▁]+|.")


def _learn_words(texts: Iterable[str], size: int) -> tuple[list[str], list[Any]]:
    """Word pieces and merges of the texts, so many pieces at most."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(WORDS, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=LETTERS,
        limit_alphabet=len(LETTERS),
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), model["merges"]


def _added(token: str, number: int) -> dict[str, Any]:
    """A token that is never split, with the flags that Phi-3 (and, for tools, Phi-4-mini) give it.

    Tool tokens are not "special": a decoder is to show them, so that a tool call can be told from
    a text that looks like one.
    """
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": token not in (UNKNOWN, BEGIN, END_OF_TEXT),
        "normalized": False,
        "special": token not in TOOL_TOKENS,
    }


def train_tokenizer(texts: Iterable[str], size: int) -> dict[str, Any]:
    """Learn a tokenizer from texts.

    Args:
        texts: Text without special tokens.
        size: How many tokens there are at most, all kinds together.

    Returns:
        The contents of `tokenizer.json`.
    """
    specials = (*PHI3_TOKENS, *TOOL_TOKENS)
    fixed = (UNKNOWN, BEGIN, CLOSE, *BYTES)
    pieces, merges = _learn_words(texts, size - len(fixed) - len(specials))
    names = (*fixed, *pieces, *specials)
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) != len(names):
        raise ValueError("A word piece has the name of a byte or of a special token.")
    added = [_added(token, vocab[token]) for token in (UNKNOWN, BEGIN, CLOSE, *specials)]
    sequence = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequence[0]],
            "pair": list(sequence),
            "special_tokens": {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {
                name: number for name, number in vocab.items() if number < vocab[END_OF_TEXT]
            },
            "merges": merges,
        },
    }


def tokenizer_config(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The contents of `tokenizer_config.json` that go with a `tokenizer.json`."""
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in keys}
            for token in tokenizer["added_tokens"]
        },
        "bos_token": BEGIN,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "legacy": True,
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": UNKNOWN,
        "use_default_system_prompt": False,
    }


def write_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into a folder."""
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": tokenizer_config(tokenizer)}
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
