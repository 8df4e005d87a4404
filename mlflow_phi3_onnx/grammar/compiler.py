"""Grammars that completions are held to: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np

from mlflow_phi3_onnx.core.native import NativeErrors
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.core.request import Grammar

__all__ = ["GrammarCompiler", "Matcher", "why_not"]

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


class GrammarCompiler:
    """Compiles grammars for one model, and keeps those that were used last.

    Several threads may use it at once; llguidance compiles without the interpreter's lock.

    Args:
        spec: The text of ``tokenizer.json``.
        vocab_size: The width of the logits, or one above the tokenizer's highest id if that is
            more.
        eos: The ids that end a completion.

    Raises:
        UnsupportedParameterError: If llguidance does not know this kind of tokenizer.
    """

    def __init__(self, spec: str, vocab_size: int, eos: frozenset[int]) -> None:
        with NativeErrors(_no_tokenizer):
            self._tokenizer = llguidance.LLTokenizer(
                spec, n_vocab=vocab_size, eos_token=sorted(eos)
            )
        self.eos = np.array(sorted(eos), dtype=np.int64)
        self._kept: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def mask_size(self) -> int:
        """How many 32-bit words a mask over the vocabulary has."""
        return (self._tokenizer.vocab_size + 31) // 32

    @property
    def kept(self) -> list[str]:
        """The texts of the grammars that are kept, from the one that was used longest ago."""
        with self._lock:
            return [grammar.text for grammar in self._kept]

    def is_control(self, token_id: int) -> bool:
        """Whether grammars write a token by its id; its text is then no part of other text."""
        return self._tokenizer.is_special_token(token_id)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Make a matcher for one completion.

        Raises:
            InvalidRequestError: If the grammar is not valid, matches nothing or is too large; the
                message names the request's field.
        """
        with self._lock:
            start = self._kept.get(grammar)
        if start is None:
            for _, part in grammar.parts:
                self.matcher(part)  # what is wrong with it shows at its own start
            start = self.compile(grammar)
            Matcher(self, grammar, start.deep_copy(), trial=True).try_out()
        self._keep(grammar, start)
        return Matcher(self, grammar, start.deep_copy())

    def compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        """Compile a grammar, whether or not it is kept.

        Raises:
            InvalidRequestError: If it is not valid, or too large.
        """
        try:
            wrapped = json.dumps({"grammars": _entries(grammar)})
        except ValueError as error:
            raise _unusable(grammar, "it is not valid JSON.") from error
        with NativeErrors(lambda _: _unusable(grammar, "llguidance fails at it.")):
            matcher = llguidance.LLMatcher(self._tokenizer, wrapped, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _unusable(grammar, _reason(matcher.get_error()))
        return matcher

    def drop(self, grammar: Grammar) -> None:
        """Keep a grammar no longer."""
        with self._lock:
            self._kept.pop(grammar, None)

    def _keep(self, grammar: Grammar, start: llguidance.LLMatcher) -> None:
        with self._lock:
            self._kept[grammar] = start
            self._kept.move_to_end(grammar)
            while len(self._kept) > 1 and (
                len(self._kept) > MAX_CACHED
                or sum(kept.size for kept in self._kept) > MAX_CACHED_CHARACTERS
            ):
                self._kept.popitem(last=False)


class Matcher:
    """Follows one completion through its grammar.

    The matchers of a grammar share the lexer states that they have met, which saves time; but
    there is a limit on their number. Where that is reached, a matcher starts over with states of
    its own, so that no completion fails because of others.

    Args:
        compiler: Where the grammar was compiled.
        grammar: The grammar.
        state: llguidance's matcher, at the start of the completion.
        trial: Whether only the grammar is tried out; nothing else has then used the states.
    """

    def __init__(
        self,
        compiler: GrammarCompiler,
        grammar: Grammar,
        state: llguidance.LLMatcher,
        *,
        trial: bool = False,
    ) -> None:
        self._compiler = compiler
        self._grammar = grammar
        self._state = state
        self._trial = trial
        self._shares = not trial
        self._tokens: list[int] = []
        self._errors = NativeErrors(lambda _: self._failure("llguidance fails at it."))

    @property
    def done(self) -> bool:
        """Whether the completion matches and nothing more may follow."""
        return self._state.is_stopped() and not self._state.is_error()

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits of all tokens that may not come next to minus infinity, in place.

        Raises:
            InvalidRequestError: If the grammar became too complex, or no token can go on in it.
        """
        logits[~self.allowed(len(logits))] = -np.inf

    def accept(self, token: int) -> None:
        """Go on to the next token of the completion.

        Raises:
            InvalidRequestError: If the grammar became too complex.
        """
        self._tokens.append(token)
        with self._errors:
            taken = token in self._compiler.eos or self._state.consume_token(token)
        if not taken:
            self._start_over()

    def allowed(self, size: int | None = None) -> NDArray[np.bool_]:
        """Tell which tokens may come next.

        Args:
            size: The number of tokens to tell of; None means all.

        Raises:
            InvalidRequestError: As :meth:`mask`.
        """
        words = np.empty(self._compiler.mask_size, dtype=np.int32)
        if not self._fill(words):
            self._start_over()
            if not self._fill(words):
                raise self._failure(_reason(self._state.get_error()))
        bits = np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.bool_)
        # A grammar may have the token that ends completions in its middle, which it would cut off.
        if bits[self._compiler.eos].any() and not self._state.is_accepting():
            bits[self._compiler.eos] = False
        if not bits.any():
            raise self._failure("no token of the model can go on in it.")
        return bits

    def try_out(self) -> None:
        """Take two steps, which show most grammars that match nothing or are too complex.

        Raises:
            InvalidRequestError: As :meth:`mask`.
        """
        self.accept(int(self.allowed().argmax()))
        if not self.done:
            self.allowed()

    def _fill(self, words: NDArray[np.int32]) -> bool:
        """Write the mask of the tokens that may come next, and tell whether there is one."""
        with self._errors:
            self._state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            return not self._state.is_error()

    def _start_over(self) -> None:
        if self._shares:
            self._shares = False
            self._compiler.drop(self._grammar)
            self._state = self._compiler.compile(self._grammar)
            if self._state.consume_tokens(self._tokens):
                return
        raise self._failure(_reason(self._state.get_error()))

    def _failure(self, reason: str) -> InvalidRequestError:
        if self._trial:
            return _unusable(self._grammar, reason)
        param = self._grammar.param
        return InvalidRequestError(
            f"The completion cannot go on within {param}: {reason}", param=param
        )


def why_not(schema: Mapping[str, Any]) -> str:
    """Say why a JSON schema cannot be compiled for any model; nothing if it can."""
    grammar = json.dumps({"grammars": [{"json_schema": schema}]})
    with NativeErrors(lambda _: InvalidRequestError("llguidance fails at a JSON schema.")):
        message = llguidance.LLMatcher.validate_grammar(grammar, limits=_LIMITS)
    return _reason(message) if message else ""


def _entries(grammar: Grammar, **name: str) -> list[dict[str, Any]]:
    """Write a grammar, and those that it refers to, as llguidance lists them."""
    if grammar.kind == "json_schema":
        entry = {"json_schema": json.loads(grammar.text)}
    elif grammar.kind == "regex":
        entry = json.loads(llguidance.LLMatcher.grammar_from_regex(grammar.text))["grammars"][0]
    else:
        entry = {"lark_grammar": grammar.text}
    parts = (part for key, held in grammar.parts for part in _entries(held, name=key))
    return [{**entry, **name}, *parts]


def _no_tokenizer(_: BaseException) -> UnsupportedParameterError:
    return UnsupportedParameterError(
        "This model's tokenizer is of a kind whose completions cannot be held to a grammar."
    )


def _unusable(grammar: Grammar, reason: str) -> InvalidRequestError:
    param = grammar.param
    return InvalidRequestError(f"{param} cannot be used as a grammar: {reason}", param=param)


def _reason(message: str) -> str:
    """Cut llguidance's message to what is wrong, without the grammar that it quotes."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "NoExtension" in message or not lines:
        return "it matches nothing."
    told = next((line for line in lines if line.startswith("error:")), lines[0])
    told = told.removeprefix("error:").strip()
    # llguidance's advice is for who compiles the grammar, not for who wrote it.
    for mark in ("; ", ":  (", " in regex /", " (at ", ". Enable "):
        told = told.partition(mark)[0]
    told = told if len(told) <= MAX_REASON else f"{told[:MAX_REASON]}..."
    return told if told.endswith(".") else f"{told}."
