"""The one request and the one completion that every door uses.

A door (native method, pyfunc row, HTTP body) parses what it got into prompts and
:class:`Options`; what comes back is a :class:`Completion` or a stream of :class:`Delta`. All of it
is plain, immutable data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ChatPrompt",
    "Completion",
    "Delta",
    "EncodedPrompt",
    "FinishReason",
    "Grammar",
    "Limits",
    "Options",
    "Prompt",
    "Sampling",
    "TextPrompt",
    "Timings",
    "TokenLogprob",
    "TokenPrompt",
]

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, to be rendered by the model's chat template.

    Attributes:
        messages: Checked messages with ``role`` and ``content`` and no null values.
        tools: Tool definitions in OpenAI's form, or None.
        template_kwargs: More values for the chat template, by name.
        reasoning_effort: One more of them, which has a parameter of its own.
        opened: Whether the prompt ends with the opening of the assistant's turn.
        continued: Whether the last message, an assistant's, is what the completion goes on with.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reasoning_effort: str | None = None
    opened: bool = True
    continued: bool = False


@dataclass(frozen=True)
class TextPrompt:
    """A whole prompt, written by the caller, control tokens included.

    Attributes:
        text: The prompt.
        param: The request's field that it came in, for messages.
    """

    text: str
    param: str = field(default="prompt", compare=False)


@dataclass(frozen=True)
class TokenPrompt:
    """A whole prompt that its caller has tokenized.

    Attributes:
        ids: Token ids, at least one.
        param: The request's field that they came in, for messages.
    """

    ids: tuple[int, ...]
    param: str = field(default="prompt", compare=False)


Prompt: TypeAlias = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one sequence chooses its tokens.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_k: Sample among this many most likely tokens; 0 means all.
        top_p: Nucleus sampling: the smallest set of most likely tokens whose probabilities sum to
            at least this.
        min_p: Drop tokens less likely than this share of the most likely token's probability.
        seed: Makes sampling repeatable, whatever else runs beside it. None draws a fresh one.
        repetition_penalty: Divides positive and multiplies negative logits of every token that the
            prompt or the completion holds (CTRL, https://arxiv.org/abs/1909.05858).
        presence_penalty: Subtracted once from the logit of a token that the completion holds.
        frequency_penalty: Subtracted for each time that the completion holds it.
        logit_bias: Added to logits, by token id.
        no_repeat_ngram_size: No run of this many tokens occurs twice; 0 allows all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True)
class Grammar:
    """What a completion must match, as a whole.

    Attributes:
        kind: What the text is: a JSON schema, a regular expression in Rust's syntax, or a grammar
            in llguidance's variant of Lark.
        text: The schema, expression or grammar.
        param: The request's field that asked for it, for messages.
        parts: Other grammars, by the names with which a Lark text refers to them (``@name``).
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    param: str = field(default="grammar", compare=False)
    parts: tuple[tuple[str, Grammar], ...] = ()

    @property
    def size(self) -> int:
        """How many characters its texts have together."""
        return len(self.text) + sum(part.size for _, part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one request asks for beside its prompt.

    Attributes:
        sampling: How tokens are chosen.
        max_tokens: The most tokens of a completion; None means as many as fit.
        max_length: The most tokens of prompt and completion together; None means the context
            length.
        strict_limit: Whether a limit that does not fit in the context is an error (the caller
            asked for it) or an upper bound (the model's saved configuration did).
        min_tokens: The fewest tokens before the completion may end.
        stop: Texts that end the completion and are not part of it.
        stop_token_ids: Tokens that do.
        ignore_eos: Whether end-of-sequence tokens do not.
        n: How many completions of each prompt.
        top_logprobs: How many alternatives to report for each token; None reports none at all.
        prompt_logprobs: Whether to report the log-probabilities of the prompt's own tokens, with
            ``top_logprobs`` alternatives each; ``max_tokens`` may then be 0.
        keep_control_tokens: Whether control tokens stay in the text, for marks of tool calls.
        kept_tokens: Those that stay in it although others do not: marks of reasoning.
        own_text: Whether the completion is a text of its own, and not the rest of another: its
            first word then has no space before it.
        grammar: What every completion must match, unless a token limit ends it; None allows all.
        timeout: Seconds after which a completion that is not finished fails; None waits for ever.
        draft_tokens: The most draft tokens that are verified in one step; 0 drafts none. They are
            looked up in the prompt and the completion (prompt lookup decoding).
        prediction: A text that the completion is likely to repeat: drafts are looked up there too.
        adapter: The adapter that computes the completion; None for none.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    max_length: int | None = None
    strict_limit: bool = True
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    keep_control_tokens: bool = False
    kept_tokens: frozenset[int] = frozenset()
    own_text: bool = False
    grammar: Grammar | None = None
    timeout: float | None = None
    draft_tokens: int = 0
    prediction: str | None = None
    adapter: str | None = None

    def ends(self, eos: frozenset[int]) -> frozenset[int]:
        """Return the tokens that end a completion.

        Args:
            eos: The model's end-of-sequence tokens.
        """
        return eos.difference(eos if self.ignore_eos else ()).union(self.stop_token_ids)


class Timings(NamedTuple):
    """How long the engine took for a sequence, in seconds.

    Attributes:
        queued: Until it was taken up.
        prefill: From then until its prompt was computed, which gives the first token.
        decode: From then on.
    """

    queued: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of one token.

    Attributes:
        token_id: The token.
        text: The token's text, with U+FFFD where it is part of a character.
        raw: The token's bytes.
        logprob: Its natural logarithm of probability under the raw logits.
        top: The most likely tokens at this position, most likely first; their own ``top`` is empty.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What was added to a completion since the delta before.

    Attributes:
        text: New text, maybe empty, without the stop sequence or control token that ended it.
        tokens: How many tokens the completion has so far, the one that ended it included.
        finish_reason: On the last delta, ``"stop"`` for an end-of-sequence token or stop sequence,
            ``"length"`` where a token limit ended it.
        logprobs: The log-probabilities of the new tokens, where asked for.
        prompt_logprobs: One entry a token of the prompt, where asked for, on the first delta; the
            first token's is None, for nothing comes before it.
        cached_tokens: How many of the prompt's tokens were found in a cache.
        drafted_tokens: How many draft tokens were verified so far.
        accepted_tokens: How many of those are part of the completion.
        token_ids: All of the completion's tokens, the one that ended it included, on the last
            delta.
        token_starts: Where the text of each begins in the completion's, in characters.
        timings: How long it took, on the last delta.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    token_starts: tuple[int, ...] = ()
    timings: Timings | None = field(default=None, compare=False)


Completion: TypeAlias = Delta
"""A whole completion: one delta from its beginning to its end."""


@dataclass(frozen=True)
class EncodedPrompt:
    """What a response has to know of a prompt.

    Attributes:
        tokens: How many tokens it has.
        text: Its text, where the response repeats it or counts characters from its start.
        offsets: Where each token's text begins in it, in characters, where the response reports
            its log-probabilities.
    """

    tokens: int
    text: str = ""
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a model can do at most.

    Attributes:
        context_length: Tokens of prompt and completion together.
        vocab_size: Token ids.
        kv_bytes_per_token: Bytes of KV cache that one token of one sequence takes.
    """

    context_length: int
    vocab_size: int
    kv_bytes_per_token: int
