"""Examples as batches of token ids, of about one length each."""

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
from corpus import Example, examples
from rendering import text_of
from tokenizer import ASSISTANT, BEGIN, BYTES, END, END_OF_TEXT, USER
from tokenizers import Tokenizer

LONGEST = 1280
CHUNK = 768


class Batch(NamedTuple):
    """Token ids `[rows, length]`, padded on the right, and which of them are to be learned."""

    ids: torch.Tensor
    learned: torch.Tensor


class Encoder:
    """Turns examples into token ids and marks those that the model has to say itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._begin = tokenizer.token_to_id(BEGIN)
        self._assistant = tokenizer.token_to_id(ASSISTANT)
        self._end = tokenizer.token_to_id(END)
        self._user = tokenizer.token_to_id(USER)
        self._first = tokenizer.token_to_id(BYTES[-1]) + 1
        self.pad = tokenizer.token_to_id(END_OF_TEXT)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def __call__(self, example: Example, *, begin: bool) -> tuple[list[int], list[bool]]:
        """Token ids of an example, after `<s>` if so wished, and for each whether to learn it."""
        ids = self._ids(text_of(example))
        if example.messages:
            learned = self._answers(ids)
        else:
            prompt = len(self._ids(example.prompt))
            ids.append(self.pad)
            learned = [place >= prompt for place in range(len(ids))]
        if begin:
            ids, learned = [self._begin, *ids], [False, *learned]
        return ids, learned

    def copy(self, rng: Random, length: int) -> tuple[list[int], list[bool]]:
        """A turn of so many words drawn at random, and the same words as the answer."""
        words = [rng.randrange(self._first, self.pad) for _ in range(length)]
        ids = [self._user, *words, self._end, self._assistant, *words, self._end]
        return ids, self._answers(ids)

    def _answers(self, ids: list[int]) -> list[bool]:
        """Marks what stands between each `<|assistant|>` and its `<|end|>`, and the end itself."""
        learned, inside = [], False
        for token in ids:
            learned.append(inside)
            inside = (inside and token != self._end) or token == self._assistant
        return learned


def _pad(rows: list[tuple[list[int], list[bool]]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = [ids + [pad] * (width - len(ids)) for ids, _ in rows]
    learned = [marks + [False] * (width - len(marks)) for _, marks in rows]
    return Batch(torch.tensor(ids), torch.tensor(learned))


def copies(encoder: Encoder, seed: int, tokens: int) -> Iterator[Batch]:
    """Batches of random words to say again, as `batches` gives examples.

    To find something in the prompt and to copy it is what tool calls and names take. On such
    batches it is learned in some hundred steps; on talks alone it took thousands.
    """
    rng = Random(seed)
    while True:
        length = rng.randint(2, 30)
        rows = [encoder.copy(rng, length) for _ in range(tokens // (2 * length + 4))]
        yield _pad(rows, encoder.pad)


def batches(encoder: Encoder, seed: int, tokens: int) -> Iterator[Batch]:
    """All batches there will ever be, in the order of a seed.

    Args:
        encoder: Turns examples into token ids.
        seed: Fixes the examples and their order.
        tokens: How many tokens a batch holds at most, padding included.

    Yields:
        Batches of examples of similar lengths.
    """
    source = examples(seed)
    rng = Random(seed + 1)
    while True:
        rows = [encoder(one, begin=rng.random() < 0.1) for one in islice(source, CHUNK)]
        rows = sorted((row for row in rows if len(row[0]) <= LONGEST), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from (_pad(group, encoder.pad) for group in groups if group)
