"""Lone surrogates: halves of characters, which JSON can hold as an escape and UTF-8 cannot.

Python's JSON takes them, where nlohmann's and serde's refuse; tokenizers and stores fail at them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["check_characters", "half_character"]


def half_character(text: str) -> str:
    """Name the first lone surrogate in a text (``U+D800``); empty where there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return ""


def check_characters(
    data: bytes, values: Mapping[str, Any], refuse: Callable[[str, str], Exception]
) -> None:
    """Refuse a JSON object that holds a lone surrogate, in a name or a value.

    Args:
        data: What it was read of. Only an escape brings half of a surrogate pair.
        values: What was read.
        refuse: Makes the error, of the key that it is under, empty for the key itself, and of what
            is wrong.
    """
    if b"\\ud" not in data.lower():
        return
    for name, value in values.items():
        for text, key in ((name, ""), (json.dumps(value, ensure_ascii=False), name)):
            if half := half_character(text):
                what = f"{key or 'The name of a field'} holds a lone surrogate ({half}), which is"
                raise refuse(key, f"{what} half of a character.")
