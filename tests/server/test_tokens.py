"""Token ids over HTTP, in vLLM's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.doors import SPAIN

if TYPE_CHECKING:
    from mlflow_phi3_onnx import GenAIModel
    from tests.support.http_server import Running


@pytest.mark.parametrize("loop", ["genai"], indirect=True)
def test_there_and_back(server: Running, model: GenAIModel) -> None:
    text = "<|user|>\nGrüß Gott<|end|>"
    reply = server.post("/tokenize", {"model": "demo", "prompt": text, "return_token_strs": True})
    ids = model.tokenize(text)
    strings = [model.detokenize([token]) for token in ids]
    assert reply.json == {
        "count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": strings,
    }  # fmt: skip
    assert server.post("/detokenize", {"tokens": ids}).json == {"prompt": model.detokenize(ids)}
    assert server.post("/detokenize", {"tokens": []}).json == {"prompt": ""}


@pytest.mark.parametrize("loop", ["genai"], indirect=True)
@pytest.mark.parametrize("opened", [True, False])
def test_a_conversation(server: Running, model: GenAIModel, opened: bool) -> None:
    fields = {"messages": SPAIN, "add_generation_prompt": opened}
    reply = server.post("/tokenize", fields)
    ids = model.apply_chat_template(SPAIN, add_generation_prompt=opened, tokenize=True)
    assert reply.json == {"count": len(ids), "max_model_len": 4096, "tokens": ids}


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        ("/tokenize", {}, "prompt", "either prompt, a string, or messages"),
        ("/tokenize", {"prompt": "x", "messages": SPAIN}, "prompt", "either prompt"),
        ("/tokenize", {"prompt": 5}, "prompt", "prompt must be a string; got 5"),
        ("/tokenize", {"prompt": "x", "tools": []}, "tools", "tools needs messages"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": True}, "add_special_tokens", "False"),
        ("/tokenize", {"messages": [{"role": "x"}]}, "messages[0].role", "one of system"),
        ("/tokenize", {"promt": "x"}, "promt", "Did you mean prompt?"),
        ("/detokenize", {}, "tokens", "tokens is missing"),
        ("/detokenize", {"tokens": "x"}, "tokens", "tokens must be a list of token ids"),
        ("/detokenize", {"tokens": [1, "x"]}, "tokens[1]", "tokens[1] must be a token id"),
        ("/detokenize", {"tokens": [2560]}, "tokens[0]", "a token id below 2,560; got 2,560"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "an integer from 0"),
    ],
)
def test_refusals(
    server: Running, path: str, fields: dict[str, Any], param: str, says: str
) -> None:
    reply = server.post(path, fields)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert says in reply.error["message"]
