"""A tokenizer that reads the texts of control tokens as what they are made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.prompt.native import NativeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tokenizers import AddedToken

__all__ = ["control_tokens", "literal_tokenizers"]

# Gemma's vocabulary has tokens for these, which stand for nothing but themselves.
_HTML = {
    *("a", "b", "blockquote", "br", "caption", "code", "del", "div", "em", "h1", "h2", "h3", "h4"),
    *("h5", "h6", "hr", "i", "img", "li", "ol", "p", "pre", "span", "strong", "sub", "sup"),
    *("table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul"),
}


def control_tokens(
    added: Mapping[int, AddedToken], shown: Callable[[str], bool]
) -> dict[int, AddedToken]:
    """Return those of a vocabulary's added tokens that steer the model, by id.

    The others are text: runs of spaces, and the tags of HTML where they are neither special nor
    part of the chat template.

    Args:
        added: The added tokens.
        shown: Tells whether the chat template has a text in it.
    """

    def is_text(token: AddedToken) -> bool:
        name = token.content.removeprefix("<").removeprefix("/").removesuffix(">")
        html = name in _HTML and not token.special and not shown(token.content)
        return html or not token.content.strip()

    return {i: token for i, token in added.items() if not is_text(token)}


def literal_tokenizers(
    spec: str, control: Collection[str]
) -> tuple[NativeTokenizer, NativeTokenizer]:
    """Make copies of a tokenizer that have no control tokens.

    Args:
        spec: The text of ``tokenizer.json``.
        control: The control tokens.

    Returns:
        One for the start of a text, where some write a space, and one for what follows.
    """
    changed: dict[str, Any] = json.loads(spec)
    model = changed["model"]
    pieces: set[str]
    if model["type"] != "Unigram":
        pieces = set(model["vocab"])
    else:  # its pieces are found in a text, whatever they stand for
        pieces = {piece for piece, _ in model["vocab"]}
        model["vocab"] = [
            [_nothing(i) if piece in control and i != model["unk_id"] else piece, score]
            for i, (piece, score) in enumerate(model["vocab"])
        ]
    # Added tokens get their ids by their order, but not those that are pieces too.
    changed["added_tokens"] = [
        {**token, "content": _nothing(token["id"])} if token["content"] in control else token
        for token in changed["added_tokens"]
        if token["content"] not in control or token["content"] not in pieces
    ]
    first = NativeTokenizer(json.dumps(changed))
    _go_on(changed["pre_tokenizer"])
    return first, NativeTokenizer(json.dumps(changed))


def _nothing(number: int) -> str:
    """Write what stands in a control token's place: no text has it, for these are no characters."""
    return f"\ufdd0{number}\ufdd1"


def _go_on(pre_tokenizer: Any) -> None:
    """Let a pre-tokenizer write no space where a text does not start."""
    if not pre_tokenizer:
        return
    for part in pre_tokenizer.get("pretokenizers", ()):
        _go_on(part)
    if pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
