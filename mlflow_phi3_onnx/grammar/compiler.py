"""Grammars that answers are held to: which tokens may come next, by llguidance."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

import llguidance
import numpy as np

from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.core.request import Grammar

__all__ = ["GrammarCompiler", "Matcher"]

MAX_CACHED = 32
"""The most grammars that are kept."""

MAX_CACHED_CHARACTERS = 1 << 20
"""The most characters that the texts of the kept grammars have together."""

MAX_REASON = 160
"""The most characters of llguidance's own reason in an error message."""

# What a grammar may cost to compile and to follow: far more than ordinary ones need.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=300_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    verbose_errors=False,
)

_Key: TypeAlias = tuple[str, str]


class _GrammarError(Exception):
    """What llguidance says about a grammar."""


class GrammarCompiler:
    """Compiles grammars for one model, and keeps those that were used last.

    Several threads may use it at once; llguidance compiles without the interpreter's lock.

    Args:
        spec: The text of ``tokenizer.json``.
        vocab_size: The width of the logits, or one above the tokenizer's highest id if that is
            more.
        eos: The ids that end an answer.

    Raises:
        UnsupportedParameterError: If llguidance does not know this kind of tokenizer.
    """

    def __init__(self, spec: str, vocab_size: int, eos: frozenset[int]) -> None:
        try:
            self._tokenizer = llguidance.LLTokenizer(
                spec, n_vocab=vocab_size, eos_token=sorted(eos)
            )
        except Exception as error:  # PyO3 raises several kinds for a tokenizer it cannot read
            raise UnsupportedParameterError(
                "This model's tokenizer is of a kind whose answers cannot be held to a grammar."
            ) from error
        self.eos = np.array(sorted(eos), dtype=np.int64)
        self._kept: OrderedDict[_Key, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def mask_size(self) -> int:
        """How many 32-bit words a mask over the vocabulary has."""
        return (self._tokenizer.vocab_size + 31) // 32

    @property
    def kept(self) -> list[str]:
        """The texts of the grammars that are kept, from the one that was used longest ago."""
        with self._lock:
            return [text for _, text in self._kept]

    def is_control(self, token_id: int) -> bool:
        """Whether grammars write a token by its id; its text is then no part of other text."""
        return self._tokenizer.is_special_token(token_id)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Make a matcher for one answer.

        Raises:
            InvalidRequestError: If the grammar is not valid, matches nothing or is too large; the
                message names the request's field.
        """
        key = (grammar.kind, grammar.text)
        with self._lock:
            start = self._kept.get(key)
            if start is not None:
                self._kept.move_to_end(key)
        if start is None:
            try:
                start = self.compile(grammar)
                _try_out(Matcher(self, grammar, start.deep_copy(), shares=False))
            except _GrammarError as error:
                raise InvalidRequestError(
                    f"{grammar.param} cannot be used as a grammar: {error}", param=grammar.param
                ) from None
            self._keep(key, start)
        return Matcher(self, grammar, start.deep_copy())

    def compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        """Compile a grammar, whether or not it is kept.

        Raises:
            _GrammarError: If it is not valid, or too large.
        """
        wrap = {
            "json_schema": llguidance.LLMatcher.grammar_from_json_schema,
            "regex": llguidance.LLMatcher.grammar_from_regex,
            "lark": llguidance.LLMatcher.grammar_from_lark,
        }[grammar.kind]
        try:
            wrapped = wrap(grammar.text)
        except ValueError as error:
            raise _GrammarError("it is not valid JSON.") from error
        matcher = llguidance.LLMatcher(self._tokenizer, wrapped, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _GrammarError(_reason(matcher.get_error()))
        return matcher

    def drop(self, grammar: Grammar) -> None:
        """Keep a grammar no longer."""
        with self._lock:
            self._kept.pop((grammar.kind, grammar.text), None)

    def _keep(self, key: _Key, start: llguidance.LLMatcher) -> None:
        with self._lock:
            self._kept[key] = start
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and (
                len(self._kept) > MAX_CACHED
                or sum(len(text) for _, text in self._kept) > MAX_CACHED_CHARACTERS
            ):
                self._kept.popitem(last=False)


class Matcher:
    """Follows one answer through its grammar.

    The matchers of a grammar share the lexer states that they have met, which saves time; but
    there is a limit on their number. Where that is reached, a matcher starts over with states of
    its own, so that no answer fails because of others.

    Args:
        compiler: Where the grammar was compiled.
        grammar: The grammar.
        state: llguidance's matcher, at the start of the answer.
        shares: Whether to start over where the shared states do not suffice.
    """

    def __init__(
        self,
        compiler: GrammarCompiler,
        grammar: Grammar,
        state: llguidance.LLMatcher,
        *,
        shares: bool = True,
    ) -> None:
        self._compiler = compiler
        self._grammar = grammar
        self._state = state
        self._shares = shares
        self._tokens: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the answer matches and nothing more may follow."""
        return self._state.is_stopped() and not self._state.is_error()

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits of all tokens that may not come next to minus infinity, in place.

        Raises:
            InvalidRequestError: If the grammar became too complex, or no token can go on in it.
        """
        try:
            allowed = self.allowed(len(logits))
        except _GrammarError as error:
            raise self._failure(error) from None
        logits[~allowed] = -np.inf

    def accept(self, token: int) -> None:
        """Go on to the next token of the answer.

        Raises:
            InvalidRequestError: If the grammar became too complex.
        """
        try:
            self.advance(token)
        except _GrammarError as error:
            raise self._failure(error) from None

    def allowed(self, size: int | None = None) -> NDArray[np.bool_]:
        """Tell which tokens may come next.

        Args:
            size: The number of tokens to tell of; None means all.

        Raises:
            _GrammarError: If there are none.
        """
        words = np.empty(self._compiler.mask_size, dtype=np.int32)
        self._state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._state.is_error():
            self._start_over()
            self._state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if self._state.is_error():
                raise _GrammarError(_reason(self._state.get_error()))
        bits = np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.bool_)
        # A grammar may have the token that ends answers in its middle: there it would cut it off.
        if bits[self._compiler.eos].any() and not self._state.is_accepting():
            bits[self._compiler.eos] = False
        if not bits.any():
            raise _GrammarError("no token of the model can go on in it.")
        return bits

    def advance(self, token: int) -> None:
        """Go on to the next token, as :meth:`accept`.

        Raises:
            _GrammarError: If the grammar became too complex.
        """
        self._tokens.append(token)
        if token not in self._compiler.eos and not self._state.consume_token(token):
            self._start_over()

    def _start_over(self) -> None:
        if not self._shares:
            raise _GrammarError(_reason(self._state.get_error()))
        self._shares = False
        self._compiler.drop(self._grammar)
        self._state = self._compiler.compile(self._grammar)
        if not self._state.consume_tokens(self._tokens):
            raise _GrammarError(_reason(self._state.get_error()))

    def _failure(self, error: _GrammarError) -> InvalidRequestError:
        param = self._grammar.param
        return InvalidRequestError(f"The answer cannot go on within {param}: {error}", param=param)


def _try_out(matcher: Matcher) -> None:
    """Take two steps, which show most grammars that match nothing or are too complex."""
    token = int(matcher.allowed().argmax())
    matcher.advance(token)
    if not matcher.done:
        matcher.allowed()


def _reason(message: str) -> str:
    """Cut llguidance's message to what is wrong, without the grammar that it quotes."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "NoExtension" in message or not lines:
        return "it matches nothing."
    told = next((line for line in lines if line.startswith("error:")), lines[0])
    told = told.removeprefix("error:").strip()
    for mark in ("; ", ":  (", " in regex /", " (at "):
        told = told.partition(mark)[0]
    told = told if len(told) <= MAX_REASON else f"{told[:MAX_REASON]}..."
    return told if told.endswith(".") else f"{told}."
