"""A prompt's length is judged before it costs anything, and the lock is not held meanwhile."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlflow_phi3_onnx import ContextLengthError, GenAIModel, UnsupportedParameterError
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.native import NativeTokenizer
from mlflow_phi3_onnx.prompt.spec import longest_token

if TYPE_CHECKING:
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

VOCAB = {"a": 0, "b": 1, "ab": 2, "abab": 3, "<unk>": 4}


def small(**model: Any) -> Tokenizer:
    merges = [("a", "b"), ("ab", "ab")]
    return Tokenizer(models.BPE(VOCAB, merges, **model))


def longest(made: Any) -> int | None:
    return longest_token(json.loads(made.to_str()), made.get_vocab())


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "length"),
    [
        (None, None, 5),
        (normalizers.Replace(" ", "_"), None, 5),
        (normalizers.Replace("aa", "b"), None, None),
        (normalizers.NFC(), pre_tokenizers.ByteLevel(), 20),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), None, 20),
        (normalizers.StripAccents(), None, None),
        (normalizers.BertNormalizer(), None, None),
        (None, pre_tokenizers.WhitespaceSplit(), 5),
        (None, pre_tokenizers.Split("b", "removed"), None),
        (None, pre_tokenizers.Split("b", "isolated"), 5),
        (None, pre_tokenizers.Sequence([pre_tokenizers.Split("b", "removed")]), None),
    ],
)
def test_the_bound_is_known_where_no_character_gets_lost(
    normalizer: Any, pre_tokenizer: Any, length: int | None
) -> None:
    made: Any = small()
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    assert longest(made) == length


def test_there_is_no_bound_where_unknown_characters_are_fused() -> None:
    assert longest(small(unk_token="<unk>", fuse_unk=True)) is None
    assert longest(small(unk_token="<unk>", fuse_unk=True, byte_fallback=True)) == 5
    assert longest(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))) is None


def test_long_texts_are_encoded_as_short_ones_are() -> None:
    made: Any = small()
    made.decoder = decoders.Fuse()
    for count in (1, 9_999, 10_000, 10_001):
        text = "ab" * count + "b"
        assert (
            NativeTokenizer(made.to_str()).encode(text, "x")
            == made.encode(text, add_special_tokens=False).ids
        )


@pytest.fixture(scope="module")
def longest_of_demo(demo: Any) -> int:
    length = NativeTokenizer.read(demo).longest_token
    assert length is not None
    return length


def test_the_bound_is_exact(tokenizer: PromptTokenizer, longest_of_demo: int) -> None:
    fits = "x" * (10 * longest_of_demo)
    assert len(tokenizer.encode(fits, context=10)) > 10
    with pytest.raises(ContextLengthError, match=rf"{10 * longest_of_demo + 1:,} characters"):
        tokenizer.encode(fits + "x", context=10)
    # Spaces may all be part of one token, beside one that strips.
    spaces = " " * (40 * longest_of_demo)
    assert len(tokenizer.encode(spaces, context=10)) > 0
    with pytest.raises(ContextLengthError, match="characters"):
        tokenizer.encode(spaces + " ", context=10)


def test_a_chat_is_judged_before_it_is_rendered(
    tokenizer: PromptTokenizer, longest_of_demo: int
) -> None:
    def encode(*messages: dict[str, Any]) -> None:
        # No template reads this: it is refused as soon as the chat is to be rendered.
        tokenizer.encode_chat(ChatPrompt(messages, template_kwargs={"no": 1}), context=10)

    most = 10 * longest_of_demo
    user, said = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    for judged in (
        {**user, "content": "x" * (most + 1)},
        {**said, "content": "x" * 4 * most},
        {**user, "key": ["x" * 4 * most]},
        {**user, "x" * 4 * most: 1},
    ):
        with pytest.raises(ContextLengthError, match="characters"):
            encode(user, judged)
    # An assistant's thoughts, and what is under other names, may cost no token.
    for taken in ({**said, "content": "x" * 2 * most}, {**user, "key": "x" * 2 * most}):
        with pytest.raises(UnsupportedParameterError, match="template does not read it"):
            encode(user, taken)


def test_thoughts_that_the_template_leaves_out_may_be_longer_than_the_context(
    model: GenAIModel,
) -> None:
    thought = {"role": "assistant", "content": "Yes.", "reasoning_content": "thought " * 20_000}
    messages = [{"role": "user", "content": "Hi"}, thought, {"role": "user", "content": "Hi"}]
    assert model.chat(messages, max_tokens=1)["usage"]["prompt_tokens"] < 100


@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids: model.complete(ids),
        lambda model, ids: model.complete([[5], ids]),
        lambda model, ids: model.token_logprobs(ids),
        lambda model, ids: model.perplexity([ids]),
        lambda model, ids: model.greedy_tokens(ids, 1),
    ],
)
def test_how_many_ids_there_are_is_judged_before_what_they_are(
    model: GenAIModel, call: Any
) -> None:
    with pytest.raises(ContextLengthError, match="has 5,000 tokens"):
        call(model, [0.5] * 5000)


def test_a_target_is_judged_before_it_is_encoded(model: GenAIModel) -> None:
    for request in ({"prompt": [5]}, {"prompt": "a"}):
        with pytest.raises(ContextLengthError, match="characters"):
            model.target_logprobs("llm/v1/completions", request, "word " * 100_000)


CALLS = {
    "messages": lambda model, text: model.chat([{"role": "user", "content": text}]),
    "prompt": lambda model, text: model.complete(text),
    "prompts": lambda model, text: model.complete(["x", text]),
    "generate": lambda model, text: model.generate(text),
    "echo": lambda model, text: model.complete(text, echo=True, logprobs=1, max_tokens=0),
    "spaces": lambda model, text: model.complete(" " * len(text)),
    "marks": lambda model, text: model.chat([{"role": "user", "content": "<|" * len(text)}]),
    "perplexity": lambda model, text: model.perplexity(text),
    "token_logprobs": lambda model, text: model.token_logprobs(text),
    "tools": lambda model, text: model.chat(
        [{"role": "user", "content": "x"}],
        tools=[{"type": "function", "function": {"name": "f", "description": text}}],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_twenty_megabytes_are_refused_and_other_threads_run_on(
    model: GenAIModel, name: str
) -> None:
    """The time is generous: tokenizing as much takes half a minute, most of it without a pause."""
    text = "many words " * 1_900_000
    done, pauses = threading.Event(), [0.0]

    def watch() -> None:
        while not done.is_set():
            before = time.perf_counter()
            time.sleep(0.005)
            pauses.append(time.perf_counter() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(ContextLengthError, match="characters"):
            CALLS[name](model, text)
    finally:
        done.set()
        watcher.join()
    assert max(pauses) < 8
