"""What ``tokenizer.json`` says, held to bounds before the tokenizers library reads it."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.bounds import (
    MAX_ADDED_CHARACTERS,
    MAX_ADDED_TOKENS,
    MAX_TEXT_GROWTH,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENIZER_STEPS,
    MAX_WORD_CHARACTERS,
)
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.prompt.expressions import is_linear

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["TOKENIZER_FILE", "check_spec", "longest_token"]

TOKENIZER_FILE = "tokenizer.json"

_PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
_KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}
_DROPPING_SPACE_ONLY = {"Whitespace", "WhitespaceSplit"}
_SHOWN = 80

_COMPOSITION = 4
"""The most characters that canonical composition (NFC, NFKC) makes one of."""


def check_spec(spec: Mapping[str, Any]) -> None:
    """Refuse what would take time or memory beyond the file's own size.

    Raises:
        InvalidModelError: If there is something of that kind.
    """
    _check_added(spec)
    _check_model(spec)
    for part in ("normalizer", "decoder"):
        if _change(spec.get(part))[0] > MAX_TEXT_GROWTH:
            raise _refusal(
                f": {part} makes more than {MAX_TEXT_GROWTH} characters of one, so a short text"
                " could take all memory"
            )
    for part in _PARTS:
        steps = [step for step in _objects(spec.get(part)) if "type" in step]
        if len(steps) > MAX_TOKENIZER_STEPS:
            raise _refusal(
                f": {part} has {len(steps):,} steps, each of which goes over every text; up to"
                f" {MAX_TOKENIZER_STEPS} are taken"
            )
    for step in _objects([spec.get(part) for part in _PARTS]):
        expression = step.get("Regex", "")
        if isinstance(expression, str) and not is_linear(expression):
            raise _refusal(
                " has a regular expression that could take very long, or of a kind that is not"
                f" known to be quick: {expression[:_SHOWN]!r}. Let nothing follow what it repeats"
                " without bound, as in 'a+' for 'a+b'"
            )


def longest_token(spec: Mapping[str, Any], vocabulary: Collection[str]) -> int | None:
    """Count the most characters other than spaces that one token can stand for.

    Args:
        spec: What the file holds.
        vocabulary: The tokens.

    Returns:
        None where there is no such bound: where the tokenizer drops characters, or makes one token
        of any number of unknown ones.
    """
    model = spec["model"]
    fused = model.get("fuse_unk") and not model.get("byte_fallback")
    _, shrinking = _change(spec.get("normalizer"))
    if model.get("type") != "BPE" or fused or shrinking == math.inf:
        return None
    if not _keeps(spec.get("pre_tokenizer")):
        return None
    return int(shrinking) * max(map(len, vocabulary), default=1)


def _refusal(what: str) -> InvalidModelError:
    return InvalidModelError(f"{TOKENIZER_FILE}{what}.")


def _check_added(spec: Mapping[str, Any]) -> None:
    added = spec.get("added_tokens")
    added = added if isinstance(added, list) else []
    if len(added) > MAX_ADDED_TOKENS:
        raise _refusal(
            f" has {len(added):,} added tokens; up to {MAX_ADDED_TOKENS:,} are read, because every"
            " text is searched for them"
        )
    contents = [token.get("content") for token in added if isinstance(token, dict)]
    lengths = [len(content) for content in contents if isinstance(content, str)]
    if max(lengths, default=0) > MAX_TOKEN_CHARACTERS:
        raise _refusal(f" has an added token of more than {MAX_TOKEN_CHARACTERS:,} characters")
    if sum(lengths) > MAX_ADDED_CHARACTERS:
        raise _refusal(
            f" has added tokens of {sum(lengths):,} characters together; up to"
            f" {MAX_ADDED_CHARACTERS:,} are read"
        )


def _check_model(spec: Mapping[str, Any]) -> None:
    model = spec.get("model")
    model = model if isinstance(model, dict) else {}
    longest = model.get("max_input_chars_per_word", 0)
    if isinstance(longest, int) and longest > MAX_WORD_CHARACTERS:
        raise _refusal(
            f": model.max_input_chars_per_word is {describe_kind(longest)}; up to"
            f" {MAX_WORD_CHARACTERS:,} is taken"
        )
    pieces = model.get("vocab")  # of Unigram: lists of a text and a number
    texts = (
        [piece[:1] for piece in pieces if isinstance(piece, list)] if type(pieces) is list else []
    )
    if any(isinstance(t, str) and len(t) > MAX_TOKEN_CHARACTERS for text in texts for t in text):
        raise _refusal(
            f": model.vocab has a piece of more than {MAX_TOKEN_CHARACTERS} characters, and every"
            " piece is tried at every place"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = model.get(key)
        if isinstance(affix, str) and len(affix) > MAX_TEXT_GROWTH:
            raise _refusal(
                f": model.{key} has {len(affix):,} characters, and is put to every part of a word;"
                f" up to {MAX_TEXT_GROWTH} are taken"
            )


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a part, from the outside in."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _change(part: Any) -> tuple[float, float]:
    """Count how many characters a normalizer or decoder makes of one, and one of how many, at most.

    Unicode's own forms make up to 18 of one, and are not counted: nobody can choose them.
    """
    match part:
        case {"type": "Sequence", "normalizers": list(parts)}:
            return _changes(parts)
        case {"type": "Sequence", "decoders": list(parts)}:
            return _changes(parts)
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            growth = max(1, len(content) / len(pattern)) if pattern else 1 + len(content)
            return growth, 1 if len(content) >= len(pattern) else math.inf
        case {"type": "Replace", "content": str(content)}:
            return 1 + len(content), math.inf  # an expression can match nothing, before everything
        case {"type": "Prepend", "prepend": str(content)}:
            return max(1, len(content)), 1
        case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
            return _longest_entry(table), math.inf
        case {"type": "NFC" | "NFKC"}:
            return 1, _COMPOSITION
        case None | {"type": "Lowercase" | "NFD" | "NFKD" | "ByteLevel" | "Strip"}:
            return 1, 1
        case _:
            return 1, math.inf


def _changes(parts: list[Any]) -> tuple[float, float]:
    changes = [_change(part) for part in parts]
    return math.prod(grown for grown, _ in changes), math.prod(shrunk for _, shrunk in changes)


def _longest_entry(table: str) -> int:
    """Count the characters of the longest text in a table of SentencePiece's.

    It is the size of a trie in four bytes, the trie, and texts that end with a zero.
    """
    try:
        data = base64.b64decode(table, validate=True)
    except ValueError:
        return 1  # the library refuses it
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=1)


def _keeps(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether all characters but spaces stay when a text is split into words."""
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return all(map(_keeps, pre_tokenizer["pretokenizers"]))
    keeping = kind in _KEEPING and pre_tokenizer.get("behavior") != "Removed"
    return keeping or kind in _DROPPING_SPACE_ONLY
