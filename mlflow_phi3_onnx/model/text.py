"""The model's text without the model: token ids, and conversations as its template writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from mlflow_phi3_onnx.core.request import ChatPrompt, TokenPrompt
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.prompts import check_ids, check_messages, check_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.model.planning import Planner
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["TextMethods"]


class TextMethods:
    """The model's methods that compute nothing with its weights."""

    _planner: Planner
    _tokenizer: PromptTokenizer

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text as a whole prompt.

        Control tokens in it are control tokens. No beginning-of-sequence token is added.

        Args:
            text: Any text, maybe empty.

        Raises:
            InvalidRequestError: If it is no string, or not valid Unicode.
        """
        (prompt,) = check_text(text, name="text")
        return self._tokenizer.encode(prompt.text, "text").tolist()

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included.

        Bytes that are no whole character are written as U+FFFD.

        Args:
            ids: Token ids, maybe none.

        Raises:
            InvalidRequestError: If one is no token id of the model.
        """
        if isinstance(ids, list | tuple) and not ids:
            return ""
        prompt = TokenPrompt(check_ids(ids, "ids"), "ids")
        return self._tokenizer.decode(self._planner.encode(prompt).tolist())[0]

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[False] = False,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[True],
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
    ) -> str | list[int]:
        """Render a conversation as :meth:`chat` does.

        In the token ids, no text of a message or a tool is a control token. A text cannot keep
        them apart: where messages come from others, pass on the ids.

        Args:
            messages: Objects with ``role`` and ``content``, as in OpenAI's chat API.
            tools: Functions that the model may call, in OpenAI's form.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            tokenize: Whether to return token ids instead of text.

        Raises:
            InvalidRequestError: If a field is not what it may be, or the template refuses it.
        """
        checked = None if tools is None else PARAMETERS[CHAT]["tools"].read(tools)
        chat = ChatPrompt(check_messages(messages), checked or None)
        if tokenize:
            ids = self._tokenizer.encode_chat(chat, add_generation_prompt=add_generation_prompt)
            return ids.tolist()
        return self._tokenizer.render_chat(chat, add_generation_prompt=add_generation_prompt)
