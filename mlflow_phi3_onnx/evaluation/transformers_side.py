"""A model of transformers, run as it is: the only module that computes with PyTorch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from mlflow_phi3_onnx.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from mlflow_phi3_onnx.evaluation.side import Place, Text

__all__ = ["TransformersSide"]

_POSITIONS = 256
"""How many positions' logits are widened to 32 bits at a time."""


class TransformersSide:
    """A model of transformers.

    Args:
        model: A model that generates text; it is used on its device and in its type.
        tokenizer: Its tokenizer.
        place: Where it was loaded from.
    """

    def __init__(self, model: Any, tokenizer: Any, place: Place) -> None:
        self._model = model
        self._tokenizer = tokenizer
        dtype = str(model.dtype).removeprefix("torch.")
        known = ["transformers", type(model).__name__, dtype, place.name]
        self.label = ", ".join(filter(None, known))
        self.place = place
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        self.vocab_size: int = model.get_input_embeddings().num_embeddings

    def encode(self, prompt: Text) -> list[int]:
        """Turn a prompt into token ids, as ``GenAIModel`` does: no token is added to a text.

        Raises:
            InvalidRequestError: If the tokenizer or the chat template refuses it.
        """
        try:
            if isinstance(prompt, str):
                return self._tokenizer.encode(prompt, add_special_tokens=False)
            messages = [dict(message) for message in prompt]
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:
            what = "tokenizer" if isinstance(prompt, str) else "chat template"
            raise InvalidRequestError(
                f"its {what} refuses the prompt ({type(error).__name__})."
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included."""
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def greedy(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue a prompt greedily; a token that ends the completion is part of it."""
        prompt = self._tensor(ids)
        with _plainly(self._model):
            whole = self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens
            )
        return whole[0, len(ids) :].tolist()

    def write(self, ids: Sequence[int], tokens: int, each: Callable[[], object]) -> int:
        """Continue a prompt greedily by so many tokens, whatever ends completions.

        Args:
            ids: The prompt.
            tokens: How many tokens.
            each: Is called with each token.

        Returns:
            How many tokens there were.
        """
        prompt, streamer = self._tensor(ids), _Streamer(each)
        with _plainly(self._model):
            whole = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                streamer=streamer,
            )
        return whole.shape[-1] - len(ids)

    def score(self, ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """Return the log-probability of each token but the first, and the most likely one there."""
        prompt = self._tensor(ids)
        logprobs: list[float] = []
        most_likely: list[int] = []
        with _plainly(self._model):
            logits = self._model(input_ids=prompt, use_cache=False).logits[0, :-1]
            parts = zip(logits.split(_POSITIONS), prompt[0, 1:].split(_POSITIONS), strict=True)
            for part, following in parts:
                wide = part.float().log_softmax(-1)
                logprobs += wide.gather(-1, following[:, None])[:, 0].tolist()
                most_likely += wide.argmax(-1).tolist()
        return logprobs, most_likely

    def _tensor(self, ids: Sequence[int]) -> Any:
        return torch.tensor([list(ids)], device=self._model.device)


class _Streamer:
    """What transformers tells of each token as it comes; the first time, it is the prompt."""

    def __init__(self, each: Callable[[], object]) -> None:
        self._each: Callable[[], object] | None = None
        self._then = each

    def put(self, _: Any) -> None:
        if self._each is not None:
            self._each()
        self._each = self._then

    def end(self) -> None:
        """Nothing is left to tell."""


@contextmanager
def _plainly(model: Any) -> Generator[None]:
    """Let the raw logits alone decide: no dropout, and no sampling or penalty of the model's own.

    transformers takes the model's own settings wherever a call does not say otherwise, so they have
    to be away for the time being.
    """
    own, training = model.generation_config, model.training
    ends = own.eos_token_id
    first = ends[0] if isinstance(ends, list) and ends else ends
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends,
        pad_token_id=first if own.pad_token_id is None else own.pad_token_id,
    )
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.generation_config = own
        model.train(training)
