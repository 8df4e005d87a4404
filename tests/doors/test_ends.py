"""What ends a completion beside the model's own tokens, in rows and beside other rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd

import mlflow_phi3_onnx
from tests.support.doors import ONE_LOOP, SPAIN
from tests.support.tool_cases import WEATHER

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx import GenAIModel

PROMPT = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
ANSWER = " The capital of Spain is Madrid."


def test_an_end_is_ignored_beside_others_as_alone(model: GenAIModel) -> None:
    ignores: dict[str, Any] = {"messages": SPAIN, "ignore_eos": True, "max_tokens": 14}
    rows = [ignores, {"messages": WEATHER, "max_tokens": 40}, {**ignores, "n": 2}]
    answers = model.run("llm/v1/chat", rows)
    told = [(c["message"]["content"], c["finish_reason"]) for a in answers for c in a["choices"]]
    (other,) = model.chat(WEATHER, max_tokens=40)["choices"]
    assert told[1] == (other["message"]["content"], "stop")
    for text, reason in (told[0], *told[2:]):
        assert text.startswith(ANSWER.lstrip())
        assert reason == "length"
    assert [a["usage"]["completion_tokens"] for a in answers][::2] == [14, 28]


def test_an_end_of_sequence_that_is_ignored_has_a_logprob(model: GenAIModel) -> None:
    fields: dict[str, Any] = {"logprobs": True, "max_tokens": 8}
    usual = model.chat(SPAIN, **fields)["choices"][0]["logprobs"]["content"]
    ignored = model.chat(SPAIN, **fields, ignore_eos=True)["choices"][0]["logprobs"]["content"]
    assert len(usual) == 7
    assert [entry["token"] for entry in ignored[7:]] == ["<|end|>"]


@ONE_LOOP
def test_params_beside_rows_of_text_carry_them(demo: Path, tmp_path: Path, loop: str) -> None:
    mlflow_phi3_onnx.save_model(demo, tmp_path / "model", task="text-generation")
    pyfunc = mlflow.pyfunc.load_model(str(tmp_path / "model"), model_config={"loop": loop})
    rows = pd.DataFrame({"prompt": [PROMPT]})
    assert pyfunc.predict(rows, params={"stop_token_ids": [814]}) == [" The capital of"]
    assert pyfunc.predict(rows, params={"ignore_eos": True, "max_tokens": 8}) == [ANSWER]
    (longer,) = pyfunc.predict(rows, params={"ignore_eos": True, "max_tokens": 12})
    assert longer.startswith(ANSWER)
    assert len(longer) > len(ANSWER)
    assert pyfunc.predict(rows) == [ANSWER]
