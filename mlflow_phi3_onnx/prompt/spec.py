"""What ``tokenizer.json`` says, held to bounds before the tokenizers library reads it."""

from __future__ import annotations

import base64
import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.bounds import (
    MAX_ADDED_CHARACTERS,
    MAX_ADDED_TOKENS,
    MAX_TEXT_GROWTH,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENIZER_STEPS,
    MAX_TOKENS,
    MAX_WORD_CHARACTERS,
)
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.prompt.expressions import is_linear

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = ["TOKENIZER_FILE", "check_spec", "longest_token"]

TOKENIZER_FILE = "tokenizer.json"

# The parts that have steps, each with what its sequences call theirs.
_PARTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_PIPELINES = (("normalizer", "pre_tokenizer", "post_processor"), ("decoder",))
"""What a text goes through, one after the other, and what tokens go through."""

_GROWTH = {
    "normalizer": {"BertNormalizer": 3, "ByteLevel": 4},
    "pre_tokenizer": {"ByteLevel": 5, "Metaspace": 2},
    "decoder": {"BPEDecoder": 3, "CTC": 3, "WordPiece": 2},
}
"""The most characters that a step makes of one, where its kind decides that.

ByteLevel writes one for each byte, and before every piece of a text one more, as Metaspace does.
"""

_FORMS = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 2,
    "Nmt": 1,
    "Strip": 1,
    "StripAccents": 1,
}
"""What Unicode decides, in the same way. Several in a row make no more of one than the largest."""

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
    _check_model(spec)
    steps = {part: list(_steps(part, spec.get(part))) for part in _PARTS}
    for part, found in steps.items():
        if len(found) > MAX_TOKENIZER_STEPS:
            raise _refusal(
                f": {part} has {len(found):,} steps, each of which goes over every text; up to"
                f" {MAX_TOKENIZER_STEPS} are taken"
            )
    for parts in _PIPELINES:
        # Nobody can choose what the largest of Unicode's forms makes of a text.
        growth, largest = _growth({part: steps[part] for part in parts})
        if growth / largest > MAX_TEXT_GROWTH:
            raise _refusal(
                f": its {', '.join(parts)} could make more than {MAX_TEXT_GROWTH} characters of"
                " one, so a short text could take all memory"
            )
    _check_added(spec, _growth({"normalizer": steps["normalizer"]})[0])
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
    shrinking = math.prod(map(_shrunk, _steps("normalizer", spec.get("normalizer"))))
    if model.get("type") != "BPE" or fused or shrinking == math.inf:
        return None
    if not _keeps(spec.get("pre_tokenizer")):
        return None
    return int(shrinking) * max(map(len, vocabulary), default=1)


def _refusal(what: str) -> InvalidModelError:
    return InvalidModelError(f"{TOKENIZER_FILE}{what}.")


def _check_added(spec: Mapping[str, Any], growth: float) -> None:
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
    normalized = [token for token in added if isinstance(token, dict) and token.get("normalized")]
    if growth * sum(len(str(token.get("content"))) for token in normalized) > MAX_ADDED_CHARACTERS:
        raise _refusal(
            f" has added tokens that its normalizer could make more than {MAX_ADDED_CHARACTERS:,}"
            " characters of"
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
    if isinstance(pieces, dict | list) and len(pieces) > MAX_TOKENS:
        raise _refusal(f": model.vocab has {len(pieces):,} tokens; up to {MAX_TOKENS:,} are taken")
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


def _steps(part: str, step: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part, those of its sequences one after the other.

    Raises:
        InvalidModelError: If one does not say of what type it is: the library would guess it.
    """
    if step is None:
        return
    if not isinstance(step, dict) or not isinstance(step.get("type"), str):
        raise _refusal(f": a step of {part} is no object with a type; it is {describe_kind(step)}")
    if step["type"] != "Sequence":
        yield step
        return
    inner = step.get(_PARTS[part])
    for one in inner if isinstance(inner, list) else ():
        yield from _steps(part, one)


def _growth(parts: Mapping[str, Iterable[Mapping[str, Any]]]) -> tuple[float, float]:
    """Count the most characters that steps make of one, and those that one form of Unicode does.

    A form after what a file can choose, as Replace is, counts again.
    """
    steps = [(step, _GROWTH.get(part, {})) for part, found in parts.items() for step in found]
    growth: float = 1
    forms = [1]
    for is_form, run in groupby(steps, lambda one: one[0]["type"] in _FORMS):
        if is_form:
            forms.append(max(_FORMS[step["type"]] for step, _ in run))
        else:
            growth *= math.prod(_grown(step, known) for step, known in run)
    return growth * math.prod(forms), max(forms)


def _grown(step: Mapping[str, Any], known: Mapping[str, int]) -> float:
    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return max(1, len(content) / len(pattern)) if pattern else 1 + len(content)
        case {"type": "Replace", "content": str(content)}:
            return 1 + len(content)  # an expression can match nothing, before everything
        case {"type": "Prepend", "prepend": str(content)}:
            return 1 + len(content)
        case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
            return _longest_entry(table)
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            return max(1, sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces))
        case _:
            return known.get(step["type"], 1)


def _shrunk(step: Mapping[str, Any]) -> float:
    """Count of how many characters a normalizer makes one, at most."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return 1 if len(content) >= len(pattern) else math.inf
        case {"type": "NFC" | "NFKC"}:
            return _COMPOSITION
        case {"type": "Lowercase" | "NFD" | "NFKD" | "ByteLevel" | "Strip" | "Prepend"}:
            return 1
        case _:
            return math.inf


def _longest_entry(table: str) -> int:
    """Count the characters of the longest text in a table of SentencePiece's.

    It is the size of a trie in four bytes, the trie, and texts that end with a zero.
    """
    try:
        data = base64.b64decode(table, validate=True)
    except ValueError:
        return 1  # the library refuses it
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(len(text.decode("utf-8", "replace")) for text in texts.split(b"\0"))


def _keeps(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether all characters but spaces stay when a text is split into words."""
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return all(map(_keeps, pre_tokenizer["pretokenizers"]))
    keeping = kind in _KEEPING and pre_tokenizer.get("behavior") != "Removed"
    return keeping or kind in _DROPPING_SPACE_ONLY
