"""Who answers a load's requests: a model in this process, or a server at a URL."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME
from mlflow_phi3_onnx.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_phi3_onnx.evaluation.side import Place
    from mlflow_phi3_onnx.evaluation.transformers_side import TransformersSide
    from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = ["WORDS", "LoadPrompt", "LoadSide", "NativeSide", "PyTorchSide", "Usage", "words"]

LoadPrompt: TypeAlias = "str | list[int]"
"""A text, or token ids."""

_TEXT = """
able acid aged also area army away baby back ball band bank base bath bear beat bell belt bird
blow blue boat body bone book boot born boss both bowl bulk burn bush busy cake call calm camp
card care case cash cast cell chat chip city club coal coat code cold come cook cool copy core
cost crew crop dark data date dawn days dead deal dean dear debt deep deny desk dial diet disc
disk door dose down draw drop dual duke dust duty each earn ease east easy edge else even exit
face fact fail fair fall farm fast fate fear feed feel file fill film find fine fire firm fish
five flat flow food foot ford form fort four free from fuel full fund gain game gate gave gear
gene gift girl give glad goal gold golf good gray grew grey grow gulf hair half hall hand hard
harm head hear heat held hell help here hero high hill hire hold hole holy home hope host
"""
WORDS = tuple(_TEXT.split())
"""What prompts are made of: common words, which most vocabularies have as one token each."""


class Usage(NamedTuple):
    """How many tokens a request had; None where a side does not tell."""

    prompt_tokens: int | None
    completion_tokens: int | None


class LoadSide(Protocol):
    """Who answers requests, from several threads at once.

    Attributes:
        label: What it is, in a few words.
        place: Where it came from.
        notes: What differs from what was asked for.
    """

    label: str
    place: Place
    notes: list[str]

    def prompt(self, tokens: int, shared: int, seed: object, number: int) -> LoadPrompt:
        """Write a prompt.

        Args:
            tokens: How many tokens it has.
            shared: How many of them, at its beginning, all prompts have.
            seed: What it is for; the same, with the same number, gives the same prompt again.
            number: Which one it is of those with this seed.
        """
        ...

    def send(self, prompt: LoadPrompt, tokens: int, chunk: Callable[[], object]) -> Usage:
        """Let a prompt be continued greedily by so many tokens.

        Args:
            prompt: The prompt.
            tokens: How many tokens the completion has.
            chunk: Is called with each chunk with text.

        Raises:
            MlflowException: If the request cannot be answered.
            OSError: If there is no connection, or it breaks.
        """
        ...


def words(
    count: int, shared: int, seed: object, number: int, choice: Sequence[Any] = WORDS
) -> list[Any]:
    """Draw words, or token ids, the first of which are the same with every seed.

    The first that is not shared goes by the number, so that no two of a few hundred begin alike.

    Args:
        count: How many.
        shared: How many of them are the same with every seed.
        seed: What the others are drawn with.
        number: Which one it is of those with this seed.
        choice: What is drawn from.
    """
    same = random.Random("shared").choices(choice, k=shared)  # noqa: S311 - it keeps no secret
    own = random.Random(repr((seed, number))).choices(choice, k=count - shared)  # noqa: S311 - nor this
    return [*same, *[choice[number % len(choice)]][: len(own)], *own[1:]]


class NativeSide:
    """A model of this flavor, in this process.

    Args:
        model: The model.
        place: Where it came from.
    """

    def __init__(self, model: GenAIModel, place: Place) -> None:
        self._model = model
        form = [model.folder.graph.precision, model.execution_provider, f"{model.loop} loop"]
        self.label = ", ".join(filter(None, [FLAVOR_NAME, model.name, *form, place.name]))
        self.place = place
        self.notes: list[str] = []
        self._ids = sorted(set(model.tokenize(" ".join(WORDS))))

    def prompt(self, tokens: int, shared: int, seed: object, number: int) -> list[int]:
        """Write a prompt of token ids of ordinary words."""
        return words(tokens, shared, seed, number, self._ids)

    def send(self, prompt: LoadPrompt, tokens: int, chunk: Callable[[], object]) -> Usage:
        """Continue a prompt, as :meth:`GenAIModel.stream_complete` does."""
        usage: dict[str, int] = {}
        stream = self._model.stream_complete(
            prompt,
            max_tokens=tokens,
            ignore_eos=True,
            stop=[],
            temperature=0,
            stream_options={"include_usage": True},
        )
        for event in stream:
            if any(choice["text"] for choice in event["choices"]):
                chunk()
            usage = event["usage"] or usage
        return Usage(usage["prompt_tokens"], usage["completion_tokens"])


class PyTorchSide:
    """A model of transformers, in this process. It answers one request after the other.

    Args:
        model: The model.
    """

    def __init__(self, model: TransformersSide) -> None:
        self._model = model
        self._turn = threading.Lock()
        self.label, self.place = model.label, model.place
        self.notes = ["It answers one request at a time: the others wait."]
        self._ids = sorted(set(model.encode(" ".join(WORDS))))

    def prompt(self, tokens: int, shared: int, seed: object, number: int) -> list[int]:
        """Write a prompt of token ids of ordinary words."""
        return words(tokens, shared, seed, number, self._ids)

    def send(self, prompt: LoadPrompt, tokens: int, chunk: Callable[[], object]) -> Usage:
        """Continue a prompt."""
        assert not isinstance(prompt, str)
        limit = self._model.context_length
        if limit is not None and len(prompt) + tokens > limit:
            raise InvalidRequestError(
                f"{len(prompt):,} tokens of a prompt and {tokens:,} of a completion are more than"
                f" the {limit:,} of the context length of {self.label}.",
                param="prompt_tokens",
            )
        with self._turn:
            return Usage(len(prompt), self._model.write(prompt, tokens, chunk))
