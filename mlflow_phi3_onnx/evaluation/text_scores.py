"""How like its target an answer is, as SQuAD's evaluation has it.

https://arxiv.org/abs/1606.05250: texts are compared in lower case, without punctuation and the
articles of English, and with single spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter

__all__ = ["exact_match", "token_f1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, target: str) -> float:
    """Return 1 where the two are the same text, else 0."""
    return float(_words(answer) == _words(target))


def token_f1(answer: str, target: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words.

    A word counts as often as both have it. Where one of them has no words, it is 1 if neither has.
    """
    said, right = _words(answer), _words(target)
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
