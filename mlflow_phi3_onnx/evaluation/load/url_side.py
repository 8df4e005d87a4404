"""A server at an OpenAI base URL."""

from __future__ import annotations

from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import allows, integer, json_object, string
from mlflow_phi3_onnx.errors import InvalidRequestError, SourceUnreachableError
from mlflow_phi3_onnx.evaluation.load.http_stream import KEY_VARIABLE, BaseURL, HTTPError, member
from mlflow_phi3_onnx.evaluation.load.side import WORDS, Usage, words
from mlflow_phi3_onnx.evaluation.side import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_phi3_onnx.evaluation.load.side import LoadPrompt

__all__ = ["URLSide"]

_COMPLETIONS, _CHAT = "/completions", "/chat/completions"
_PROBE_WORDS, _PROBE_TOKENS = 64, 4
_NO_ROUTE = (404, 405, 501)
_REFUSED = (400, 422)
_TEXTS = ("text", "content", "reasoning_content")
_COUNT = integer(0)


@allows("a list of objects")
def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError
    return [json_object(item) for item in value]


# Beyond OpenAI's own parameters; in the order in which they are given up where they are refused.
_EXTRAS: dict[str, tuple[dict[str, Any], str]] = {
    "ignore_eos": (
        {"ignore_eos": True},
        "It refuses ignore_eos: completions may be shorter than asked for.",
    ),
    "stream_options": (
        {"stream_options": {"include_usage": True}},
        "It refuses stream_options: tokens are its chunks, and prompts are not counted.",
    ),
}


class URLSide:
    """A server that speaks OpenAI's API, on its completions or else on its chat route.

    What it takes is found out by requests before the load. Prompts are text here, for whose tokens
    it is: they are as long as the server counts words of the first request.

    Args:
        url: The base URL.
        model: The id of one of its models; None takes the first that it lists.
        timeout: Seconds after which a response that says nothing is given up.
        param: The argument that the URL came in.

    Raises:
        InvalidRequestError: If it is no base URL, or there is no such model.
        HTTPError: If the server refuses to answer.
        SourceUnreachableError: If no server is there.
    """

    def __init__(self, url: str, model: str | None, timeout: float, param: str) -> None:
        self._base = BaseURL(url, param, timeout)
        self.place = Place(self._base.shown)
        self.notes: list[str] = []
        self._path = _COMPLETIONS
        self._extras = dict(_EXTRAS)
        try:
            self._name = model or self._first_model(param)
            self._tokens_per_word = self._probe()
        except HTTPError as error:
            raise _advised(error, param) from error
        except (OSError, HTTPException, UnicodeError) as error:  # the last of a host's name
            raise SourceUnreachableError(
                f"{param}: nothing answers at {self._base.shown} as a server does"
                f" ({type(error).__name__}).",
                param=param,
            ) from error
        self.label = f"{self._name} at {self._base.shown}"

    def prompt(self, tokens: int, shared: int, seed: object, number: int) -> str:
        """Write a prompt of words; how many tokens it has, the server tells."""
        count = max(1, round(tokens / self._tokens_per_word))
        same = min(count, round(shared / self._tokens_per_word))
        return " ".join(words(count, same, seed, number))

    def send(self, prompt: LoadPrompt, tokens: int, chunk: Callable[[], object]) -> Usage:
        """Let the server continue a prompt, and read its stream."""
        usage = Usage(None, None)
        for event in self._base.events(self._path, self._payload(prompt, tokens)):
            for choice in member(event, "choices", _objects, []):
                delta = member(choice, "delta", json_object, {}) or choice
                texts = [member(delta, name, string, "") for name in _TEXTS]
                if any(texts):
                    chunk()
            if told := member(event, "usage", json_object, {}):
                counts = [member(told, name, _COUNT, None) for name in Usage._fields]
                usage = Usage(*counts)
        return usage

    def _payload(self, prompt: LoadPrompt, tokens: int) -> dict[str, Any]:
        chat = self._path == _CHAT
        asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        payload = {"model": self._name, **asked, "max_tokens": tokens, "stream": True}
        payload["temperature"] = 0
        for fields, _ in self._extras.values():
            payload |= fields
        return payload

    def _first_model(self, param: str) -> str:
        listed = member(self._base.get("/models"), "data", _objects, [])
        if not listed or not (name := member(listed[0], "id", string, "")):
            raise InvalidRequestError(
                f"{param}: {self._base.shown}/models lists no model. Name one.", param=param
            )
        return name

    def _probe(self) -> float:
        """Find out what the server takes, and how many tokens it makes of a word."""
        prompt = " ".join(WORDS[:_PROBE_WORDS])
        while True:
            try:
                usage = self.send(prompt, _PROBE_TOKENS, lambda: None)
            except HTTPError as error:
                if error.status_code in _NO_ROUTE and self._path == _COMPLETIONS:
                    self._path = _CHAT
                    self.notes.append("It has no completions: prompts are messages of a chat.")
                elif error.status_code in _REFUSED and self._extras:
                    name = next(iter(self._extras))
                    self.notes.append(self._extras.pop(name)[1])
                else:
                    raise
            else:
                break
        if usage.prompt_tokens:
            return usage.prompt_tokens / _PROBE_WORDS
        self.notes.append("It tells no usage: a word and a chunk are taken for a token each.")
        return 1.0


def _advised(error: HTTPError, param: str) -> HTTPError:
    """Say what to do about an error before the load."""
    advice = {
        401: f" Set {KEY_VARIABLE} to its key.",
        403: f" Set {KEY_VARIABLE} to its key.",
        404: " Give its base URL, which mostly ends with /v1.",
    }
    said = f"{param}: {error.message}{advice.get(error.status_code, '')}"
    return HTTPError(said, error.status_code)
