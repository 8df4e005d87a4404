"""What a tokenizer's file may hold, and what comes of one that the library fails at."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIError, GenAIModel, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.core.bounds import (
    MAX_ADDED_TOKENS,
    MAX_TEXT_GROWTH,
    MAX_TOKENS,
    MAX_UNUSED_IDS,
)
from mlflow_phi3_onnx.core.native import NativeErrors
from mlflow_phi3_onnx.prompt.native import NativeTokenizer
from mlflow_phi3_onnx.prompt.spec import check_spec
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.edits import edit_json

if TYPE_CHECKING:
    from collections.abc import Callable

Spec = dict[str, Any]


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo model."""
    return Path(shutil.copytree(demo, tmp_path / "model"))


def edit(folder: Path, change: Callable[[Spec], Any]) -> None:
    edit_json(folder / "tokenizer.json", change)


def replace(pattern: str, content: str) -> Spec:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def normalize(*parts: Spec) -> Callable[[Spec], Any]:
    return lambda spec: spec.update(normalizer={"type": "Sequence", "normalizers": list(parts)})


def split(expression: str) -> Spec:
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
METASPACE = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}


def words(*steps: Spec) -> Spec:
    return {"type": "Sequence", "pretokenizers": [split("."), *steps]}


def repeated(times: int) -> Spec:
    """A post-processor that writes the text's tokens several times."""
    first, second = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    pair = [first, second]
    kind = "TemplateProcessing"
    return {"type": kind, "single": [first] * times, "pair": pair, "special_tokens": {}}


def put_token(number: int) -> Callable[[Spec], Any]:
    return lambda spec: spec["model"]["vocab"].update({"\u2581x\u2581": number})


def charsmap(text: bytes) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + b"trie" + text + b"\0").decode()


def token(number: int) -> Spec:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 2560 + number, "content": f"<|extra_{number}|>", **flags}


GROWING = "could make more than 128 characters of one"
REFUSED: dict[str, tuple[Callable[[Spec], Any], str]] = {
    "an id of 32 bits": (
        lambda spec: spec["model"]["vocab"].update({"\u2581Madagascar": 2**31}),
        "has the token id 2,147,483,648",
    ),
    "an id far beyond the vocabulary": (
        lambda spec: spec["model"]["vocab"].update({"\u2581Madagascar": 10**8}),
        "has the token id 100,000,000",
    ),
    "added tokens": (
        lambda spec: spec.update(added_tokens=[token(i) for i in range(MAX_ADDED_TOKENS + 1)]),
        "has 65,537 added tokens",
    ),
    "growth": (normalize(*[replace("a", "a" * 1000)] * 3), GROWING),
    "growth in steps": (normalize(replace("a", "a" * 8), replace("a", "a" * 17)), GROWING),
    "growth of nothing": (
        normalize({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 128}),
        GROWING,
    ),
    "growth before every character": (
        normalize(*[{"type": "Replace", "pattern": {"String": ""}, "content": "x"}] * 8),
        GROWING,
    ),
    "a long token": (
        lambda spec: spec["added_tokens"].append({**token(0), "content": "x" * 257}),
        "an added token of more than 256",
    ),
    "long tokens": (
        lambda spec: spec.update(
            added_tokens=[{**token(i), "content": f"{i:0256}"} for i in range(2**13 + 1)]
        ),
        "has added tokens of 2,097,408 characters together; up to 2,097,152 are read",
    ),
    "a long word": (
        lambda spec: spec["model"].update(max_input_chars_per_word=1001),
        "max_input_chars_per_word is 1001",
    ),
    "a long beginning": (normalize({"type": "Prepend", "prepend": "x" * 128}), GROWING),
    "a table of long texts": (
        normalize({"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 129)}),
        GROWING,
    ),
    "a long piece of Unigram": (
        lambda spec: spec.update(
            model={"type": "Unigram", "unk_id": 0, "vocab": [["?", 0.0], ["a" * 257, -1.0]]}
        ),
        "model.vocab has a piece of more than 256 characters",
    ),
    "a long end of words": (
        lambda spec: spec["model"].update(end_of_word_suffix="x" * 129),
        "model.end_of_word_suffix has 129 characters",
    ),
    "an expression that tries again and again": (
        lambda spec: spec.update(pre_tokenizer=split("(a+)+$")),
        r"regular expression that could take very long.*'\(a\+\)\+\$'",
    ),
    "such an expression in a normalizer": (
        normalize({"type": "Replace", "pattern": {"Regex": r"\s+$"}, "content": ""}),
        "regular expression that could take very long",
    ),
    "such an expression in a decoder": (
        lambda spec: spec.update(
            decoder={"type": "Replace", "pattern": {"Regex": "a+b"}, "content": ""}
        ),
        "regular expression that could take very long",
    ),
    "steps": (
        normalize(*[{"type": "NFC"}] * 129),
        "normalizer has 129 steps.*up to 128 are taken",
    ),
    "growth of what is decoded": (
        lambda spec: spec.update(decoder=replace("a", "a" * 129)),
        GROWING,
    ),
    "bytes of bytes": (normalize(*[{"type": "ByteLevel"}] * 4), GROWING),
    "bytes of bytes, of words": (
        lambda spec: spec.update(pre_tokenizer=words(*[BYTES] * 4)),
        GROWING,
    ),
    "growth in one part and the next": (
        lambda spec: spec.update(
            normalizer=replace("a", "a" * 8),
            pre_tokenizer=words(BYTES),
            post_processor=repeated(4),
        ),
        "its normalizer, pre_tokenizer, post_processor " + GROWING,
    ),
    "a beginning of every character": (
        lambda spec: spec.update(pre_tokenizer=words(*[METASPACE] * 8)),
        GROWING,
    ),
    "a template that repeats the text": (
        lambda spec: spec.update(post_processor=repeated(129)),
        GROWING,
    ),
    "long characters, made long again": (
        normalize({"type": "NFKD"}, *[replace("\u0644", "\ufdfa"), {"type": "NFKD"}] * 2),
        GROWING,
    ),
    "capital letters of two, made again": (
        normalize({"type": "NFC"}, *[replace("i", "\u0130"), {"type": "Lowercase"}] * 8),
        GROWING,
    ),
    "spaces around every character": (
        normalize(*[{"type": "BertNormalizer"}] * 5),
        GROWING,
    ),
    "growth of every token": (
        lambda spec: spec.update(
            decoder={"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 5}
        ),
        GROWING,
    ),
    "growth of added tokens": (
        lambda spec: spec.update(
            normalizer=replace("x", "x" * 128),
            added_tokens=[
                {**token(0), "content": f"{i:0128}", "normalized": True} for i in range(129)
            ],
        ),
        "has added tokens that its normalizer could make more than 2,097,152 characters of",
    ),
    "a normalizer without a type": (
        normalize({"pattern": {"String": ""}, "content": "x" * 999}),
        "a step of normalizer is no object with a type; it is an object",
    ),
    "a normalizer that is a list": (
        lambda spec: spec.update(normalizer=["x" * 999]),
        "a step of normalizer is no object with a type; it is a list",
    ),
    "a decoder without a type": (
        lambda spec: spec.update(decoder={"suffix": ""}),
        "a step of decoder is no object with a type",
    ),
    "a table that is none": (
        normalize({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "is damaged or of a kind",
    ),
    "a table that is cut": (
        normalize({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAAA"}),
        "is damaged or of a kind|tokenizer.json has text that",
    ),
    "no word for what is unknown": (
        lambda spec: spec.update(
            model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "<none>"}, added_tokens=[]
        ),
        "is damaged or of a kind",
    ),
    "a list": (lambda spec: spec.clear(), "is damaged or of a kind"),
}


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_is_refused(
    folder: Path, change: Callable[[Spec], Any], says: str
) -> None:
    edit(folder, change)
    with pytest.raises(GenAIError, match=says) as caught:
        PromptTokenizer(folder)
    assert caught.value.message.startswith("tokenizer.json")


def test_what_is_at_the_bounds_is_taken(folder: Path) -> None:
    count = len(NativeTokenizer.read(folder).vocabulary) + 1
    edit(folder, normalize(replace("q", "q" * 8), replace("r", "r" * (MAX_TEXT_GROWTH // 8))))
    edit(folder, put_token(count + MAX_UNUSED_IDS - 1))
    tokenizer = NativeTokenizer.read(folder)
    assert len(tokenizer.vocabulary) == count
    assert max(tokenizer.vocabulary.values()) == count + MAX_UNUSED_IDS - 1
    assert len(tokenizer.encode("qq", "x")) > 2
    edit(folder, put_token(count + MAX_UNUSED_IDS))
    with pytest.raises(InvalidModelError, match="has the token id"):
        NativeTokenizer.read(folder)


TABLE = {"type": "Precompiled", "precompiled_charsmap": charsmap("\u0635".encode() * 18)}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
PUBLISHED: dict[str, tuple[list[Spec], list[Spec]]] = {
    "T5": ([TABLE, SPACES], [{"type": "WhitespaceSplit"}, METASPACE]),
    "ALBERT": (
        [
            *(replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}),
            *({"type": "Lowercase"}, TABLE),
        ],
        [{"type": "WhitespaceSplit"}, METASPACE],
    ),
    "CLIP": ([{"type": "NFC"}, SPACES, {"type": "Lowercase"}], [split("x"), BYTES]),
    "BERT": ([{"type": "BertNormalizer"}], [{"type": "BertPreTokenizer"}]),
    "Llama 2": ([{"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")], []),
}


@pytest.mark.parametrize(("normalizers", "pre_tokenizers"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_steps_of_published_tokenizers_are_taken(
    normalizers: list[Spec], pre_tokenizers: list[Spec]
) -> None:
    check_spec(
        {
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
            "post_processor": repeated(1),
        }
    )


def test_a_request_that_the_tokenizer_fails_at(folder: Path) -> None:
    """A character that it has no token for, nor one for what is unknown."""
    edit(folder, lambda spec: spec["model"].update(byte_fallback=False, unk_token="<none>"))
    text = "\u4e2d"
    with GenAIModel(folder) as model:
        with pytest.raises(InvalidRequestError, match="messages has text that") as caught:
            model.chat([{"role": "user", "content": text}], max_tokens=2)
        assert (caught.value.param, text in caught.value.message) == ("messages", False)
        with pytest.raises(InvalidRequestError, match="prompt has text that"):
            model.complete(text, max_tokens=2)
        assert model.complete("b", max_tokens=2)["usage"]["completion_tokens"] <= 2


def test_a_byte_order_mark_is_taken_off(folder: Path, demo: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_text("\ufeff" + text, "utf-8")
    chat = [{"role": "user", "content": "Capital of Spain?"}]
    with GenAIModel(folder) as model, GenAIModel(demo) as other:
        assert model.apply_chat_template(chat) == other.apply_chat_template(chat)


def test_what_is_no_failure_of_the_library_passes() -> None:
    errors = NativeErrors(lambda _: ValueError("ours"))
    with pytest.raises(ValueError, match="ours"), errors:
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), errors:
        raise KeyboardInterrupt
    with errors:
        pass


@pytest.mark.parametrize("kind", [dict, list])
def test_a_vocabulary_has_its_bound(kind: Callable[[Any], Any]) -> None:
    ids = range(MAX_TOKENS + 1)
    check_spec({"model": {"vocab": kind((str(i), i) for i in ids[:-1])}})
    with pytest.raises(InvalidModelError, match=r"vocab has 524,289 tokens; up to 524,288"):
        check_spec({"model": {"vocab": kind((str(i), i) for i in ids)}})
