"""How long a text may be that fits into a context, judged before it is encoded."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_phi3_onnx.prompt.native import NativeTokenizer

__all__ = ["longest_token"]

_COMPOSITION = 4
"""The most characters that canonical composition (NFC, NFKC) makes one of."""

_KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}
_DROPPING_SPACE_ONLY = {"Whitespace", "WhitespaceSplit"}


def longest_token(tokenizer: NativeTokenizer) -> int | None:
    """Count the most characters other than spaces that one token can stand for.

    Returns:
        None where there is no such bound: where the tokenizer drops characters, or makes one token
        of any number of unknown ones.
    """
    spec: dict[str, Any] = json.loads(tokenizer.spec)
    model = spec["model"]
    fused = model["type"] != "BPE" or (model.get("fuse_unk") and not model.get("byte_fallback"))
    shrinking = _shrinking(spec.get("normalizer"))
    if shrinking == math.inf or not _keeps(spec.get("pre_tokenizer")) or fused:
        return None
    return int(shrinking) * max(map(len, tokenizer.vocabulary), default=1)


def _shrinking(normalizer: dict[str, Any] | None) -> float:
    """Count how many characters a normalizer makes one of, at most; infinity for any number."""
    match normalizer:
        case None | {"type": "Prepend" | "Lowercase" | "NFD" | "NFKD" | "ByteLevel" | "Strip"}:
            return 1
        case {"type": "NFC" | "NFKC"}:
            return _COMPOSITION
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return 1 if len(content) >= len(pattern) else math.inf
        case {"type": "Sequence", "normalizers": list(parts)}:
            return math.prod(map(_shrinking, parts))
        case _:
            return math.inf


def _keeps(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether all characters but spaces stay when a text is split into words."""
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(map(_keeps, pre_tokenizer["pretokenizers"]))
    keeping = kind in _KEEPING and pre_tokenizer.get("behavior") != "Removed"
    return keeping or kind in _DROPPING_SPACE_ONLY
