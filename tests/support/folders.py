"""Tokenizers of the kinds that models have, made here in a moment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

if TYPE_CHECKING:
    from pathlib import Path

TEXT = [
    "The capital of Spain is Madrid, and the capital of France is Paris.",
    "Naïve café, Ärger über Öl: été à la plage.    Four spaces, a\ttab,\nand a new line.",
    "def f(x):\n    return {'a': [1, 2, 3]}  # 4567890",
] * 4
CONTROL = ["<|start|>", "<|stop|>", "<|end|>", "<think>", "</think>"]

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level(**control: Any) -> Tokenizer:
    """A byte-level BPE, as Qwen's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return with_control(tokenizer, **control)


def metaspace(scheme: str = "first", **control: Any) -> Tokenizer:
    """A BPE with bytes for what it has no piece of, as Mistral's and Gemma's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)  # type: ignore[arg-type]
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] == "<unk>"]
    return with_control(Tokenizer.from_str(json.dumps(spec)), **control)


def unigram(**control: Any) -> Tokenizer:
    """A Unigram model over NFKC text, as T5's, XLNet's and Gemma's first."""
    pieces: list[tuple[str, float]] = [("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    letters = sorted({letter for text in TEXT for letter in text.replace(" ", "▁")})
    words = sorted({f"▁{word}" for text in TEXT for word in text.split()})
    pieces += [(piece, -4.0) for piece in letters] + [(piece, -9.0) for piece in words]
    pieces += [(text, 0.0) for text in CONTROL]  # in the vocabulary, as SentencePiece has them
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    return with_control(tokenizer, **control)


def with_control(tokenizer: Tokenizer, *, normalized: bool = False, **flags: Any) -> Tokenizer:
    tokens = [AddedToken(text, normalized=normalized, **flags) for text in CONTROL]
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.add_tokens(tokens[3:])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, template: Any = TEMPLATE, **config: Any) -> Path:
    """Write the files of a tokenizer to a folder."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
