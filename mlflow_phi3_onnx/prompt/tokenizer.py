"""Text to token ids and back, with a caller's text kept apart from the model's control tokens."""

from __future__ import annotations

import threading
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.errors import ContextLengthError, InvalidRequestError
from mlflow_phi3_onnx.prompt.control_text import Fragments, Hidden
from mlflow_phi3_onnx.prompt.detokenizer import Detokenizer, byte_tokens, token_bytes
from mlflow_phi3_onnx.prompt.finder import Found, TextFinder
from mlflow_phi3_onnx.prompt.literal import control_tokens, literal_tokenizers
from mlflow_phi3_onnx.prompt.native import NativeTokenizer
from mlflow_phi3_onnx.prompt.spec import TOKENIZER_FILE
from mlflow_phi3_onnx.prompt.template.conversation import Conversation, check_text
from mlflow_phi3_onnx.prompt.template.files import load_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.core.request import ChatPrompt
    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler

__all__ = ["PromptTokenizer"]

# Reasoning templates cut an assistant's history at these, so there they stay as they are.
_REASONING_MARKS = {"<think>", "</think>"}
_BLOCK = 1 << 16
"""Characters that are counted at once: the interpreter is held for so many, not for them all."""

_LEFT_OUT = 4
"""How many times as long as what a context can show a text may be, with spaces, thoughts and
whatever else costs no token, or a template leaves out. Beyond, it is not worth being looked at.
"""

MAX_TOKEN_TEXTS = 1 << 16
"""The most tokens whose texts are kept: log-probabilities name the same ones again and again."""

# What a token that strips takes from the text beside it: Unicode's White_Space, which is not what
# Python's strip takes.
_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


class PromptTokenizer:
    """A model folder's tokenizer and chat template.

    Args:
        path: The model folder, with ``tokenizer.json`` and ``tokenizer_config.json``.

    Attributes:
        control_ids: The ids of control tokens, which are left out of a completion's text.
        template_shows: Whether the chat template, the one for tools where there is one, has a text
            in it.
        token_text: One token's text, as it stands after other text, and its bytes, by its id.

    Raises:
        InvalidModelError: If a file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = NativeTokenizer.read(path)
        self._template = load_template(path)
        self.template_shows: Callable[[str], bool] = lambda _: False
        if self._template is not None:
            self.template_shows = self._template.shows
        control = control_tokens(self._tokenizer.added, self.template_shows)
        self._control = {token.content: i for i, token in control.items()}
        self.control_ids = frozenset(control)
        self._special = frozenset(i for i, token in self._tokenizer.added.items() if token.special)
        self._strips_right = {token.content for token in control.values() if token.rstrip}
        self._strips_left = {token.content for token in control.values() if token.lstrip}
        self._finder = TextFinder(self._control)
        self._in_history = TextFinder(self._control.keys() - _REASONING_MARKS)
        self._byte_tokens = byte_tokens(self._tokenizer)
        self._anchor = self._tokenizer.encode("a", TOKENIZER_FILE)[-1:]
        self.token_text = lru_cache(maxsize=MAX_TOKEN_TEXTS)(self._token_text)
        self._grammars: dict[tuple[int, frozenset[int]], GrammarCompiler] = {}
        self._grammars_lock = threading.Lock()

    def encode(
        self, text: str, param: str = "prompt", context: int | None = None
    ) -> NDArray[np.int32]:
        """Encode a prompt that its caller wrote as a whole, control tokens included.

        No beginning-of-sequence token is added, as with onnxruntime-genai's own tokenizer.

        Args:
            text: The prompt.
            param: What to call it in messages.
            context: The most tokens that are of use; None takes any text.

        Raises:
            ContextLengthError: If the text is certainly longer than that, before it is encoded.
        """
        check_text(text, param)
        self._check_length([text], context, "The prompt" if param == "prompt" else param)
        return _ids(self._tokenizer.encode(text, param))

    def offsets(self, text: str) -> tuple[int, ...]:
        """Tell where each token of a whole prompt begins in it, in characters."""
        return self._tokenizer.offsets(text, "prompt")

    def encode_chat(
        self, chat: ChatPrompt, *, add_generation_prompt: bool = True, context: int | None = None
    ) -> NDArray[np.int32]:
        """Render a conversation and encode it; no text of the caller's becomes a control token.

        Args:
            chat: The conversation.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            context: The most tokens that are of use; None takes any conversation.

        Raises:
            InvalidRequestError: If the model has no chat template, or the template refuses.
            ContextLengthError: If the prompt is certainly longer, before it is encoded.
        """
        rendered, hidden = self._render(chat, add_generation_prompt, context)
        self._check_length([rendered], context, "The prompt")
        if not hidden.found:
            ids = self._tokenizer.encode(rendered, "messages")
            # Other control ids than the text shows: a normalizer made them out of other characters.
            shown = [self._control[found.text] for found in self._finder.find(rendered)]
            if self._control_of(ids) == shown:
                return _ids(ids)
        return _ids(self._encode_in_pieces(rendered, hidden))

    def render_chat(self, chat: ChatPrompt, *, add_generation_prompt: bool = True) -> str:
        """Render a conversation to text, as :meth:`encode_chat` does before it encodes it.

        The text does not tell control tokens of the template from the same text of the caller's.
        """
        rendered, hidden = self._render(chat, add_generation_prompt)
        return hidden.restore(rendered)

    def decode(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text of token ids, control tokens included, and where each token begins.

        A token that goes on with a character begins where the character does.
        """
        stream = self.detokenizer(keep_control=True, own_text=True)
        text: list[str] = []
        offsets: list[int] = []
        length = 0
        for token in ids:
            offsets.append(length)
            text.append(stream.add(token))
            length += len(text[-1])
        return "".join([*text, stream.flush()]), tuple(offsets)

    def detokenizer(
        self,
        *,
        keep_control: bool = False,
        kept: frozenset[int] = frozenset(),
        own_text: bool = False,
    ) -> Detokenizer:
        """Make a decoder for one sequence of generated tokens.

        Args:
            keep_control: Whether control tokens are written too.
            kept: Those that are, where others are not.
            own_text: Whether they are a text of their own, and not the rest of another.
        """
        some = kept and not keep_control
        return Detokenizer(
            self._tokenizer,
            self._anchor,
            self._byte_tokens,
            keep_control=keep_control or bool(some),
            dropped=self._special - kept if some else frozenset(),
            own_text=own_text,
        )

    def _token_text(self, token_id: int, *, begins: bool = False) -> tuple[str, bytes]:
        piece = self._tokenizer.token(token_id)
        if piece in self._control:
            return piece, piece.encode()
        before = [] if begins else self._anchor
        text = self._tokenizer.decode([*before, token_id], keep_control=True)[len(before) :]
        return text, self._byte_tokens.get(token_id) or token_bytes(piece, text)

    def control_id(self, text: str) -> int | None:
        """Return the id of the control token with this text, if there is one."""
        return self._control.get(text)

    def grammars(self, vocab_size: int, eos: frozenset[int]) -> GrammarCompiler:
        """Return the compiler of grammars for this tokenizer, made when it is first asked for.

        Args:
            vocab_size: The width of the model's logits.
            eos: The ids that end a completion.

        Raises:
            UnsupportedParameterError: If completions in this tokenizer cannot be held to a grammar.
        """
        # llguidance takes a tenth of a second to import, which most programs never need.
        from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler

        with self._grammars_lock:
            compiler = self._grammars.get((vocab_size, eos))
            if compiler is None:
                size = max(vocab_size, 1 + max(self._tokenizer.vocabulary.values()))
                compiler = GrammarCompiler(self._tokenizer.spec, size, eos)
                self._grammars[vocab_size, eos] = compiler
            return compiler

    def _check_length(
        self,
        texts: Sequence[str],
        context: int | None,
        subject: str,
        beside: Iterable[str] = (),
    ) -> None:
        """Refuse texts that have more tokens than a context, where their characters tell.

        Args:
            texts: What the model would read, one behind the other.
            context: The most tokens that are of use; None takes any texts.
            subject: What to call them in messages.
            beside: What it may not read, but is looked at.
        """
        longest = self._tokenizer.longest_token
        if context is None or longest is None:
            return
        most, length = context * longest, sum(map(len, texts))
        # Tokens that strip, and some tokenizers, take any number of spaces into one token.
        blocks = (text[at : at + _BLOCK] for text in texts for at in range(0, len(text), _BLOCK))
        shown = accumulate(len("".join(block.split())) for block in blocks)
        whole = length + sum(map(len, beside))
        if whole > _LEFT_OUT * most or (length > most and any(count > most for count in shown)):
            raise ContextLengthError(
                f"{subject} has {whole:,} characters, more than fit in the model's maximum"
                f" context length of {context:,} tokens. Shorten it."
            )

    def _render(
        self, chat: ChatPrompt, add_generation_prompt: bool, context: int | None = None
    ) -> tuple[str, Hidden]:
        """Render a conversation, with the caller's texts of control tokens hidden in it."""
        conversation = Conversation(chat)
        self._check_length(conversation.shown, context, "The prompt", conversation.beside)
        if self._template is None:
            raise InvalidRequestError(
                "This model has no chat template, so it cannot answer messages. Send a prompt.",
                param="messages",
            )
        finders = (self._finder, self._in_history)
        whole = Hidden(conversation.texts, *finders)
        rendered = conversation.render(self._template, whole, add_generation_prompt)
        if any(any(self._fragments.edges(text)) for text in conversation.chosen):
            # A template may put texts side by side, or between "<" and ">": then parts of control
            # tokens become whole ones. They do where there are fewer with the parts hidden.
            parts = Hidden(conversation.texts, *finders, self._fragments)
            apart = conversation.render(self._template, parts, add_generation_prompt)
            shown = [[f.text for f in self._finder.find(text)] for text in (apart, rendered)]
            if shown[0] != shown[1]:
                return apart, parts
        return rendered, whole

    @cached_property
    def _fragments(self) -> Fragments:
        return Fragments(self._control)

    @cached_property
    def _literal(self) -> tuple[NativeTokenizer, NativeTokenizer]:
        return literal_tokenizers(self._tokenizer.spec, self._control)

    def _control_of(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if i in self.control_ids]

    def _encode_in_pieces(self, rendered: str, hidden: Hidden) -> list[int]:
        """Encode between the template's own control tokens, so that nothing else can become one."""
        ids: list[int] = []
        previous: Found | None = None
        for found in [*self._finder.find(rendered), None]:
            start = previous.end if previous else 0
            piece = rendered[start : found.start if found else len(rendered)]
            if previous and previous.text in self._strips_right:
                piece = piece.lstrip(_SPACE)
            if found and found.text in self._strips_left:
                piece = piece.rstrip(_SPACE)
            if piece:
                literal = self._literal[0 if previous is None else 1]
                text = literal.encode(hidden.restore(piece), "messages")
                if self._control_of(text):
                    raise InvalidRequestError(
                        "messages hold the text of one of the model's control tokens, which its"
                        " tokenizer cannot write as text. Remove it.",
                        param="messages",
                    )
                ids += text
            if found:
                ids.append(self._control[found.text])
            previous = found
        return ids


def _ids(ids: list[int]) -> NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)
